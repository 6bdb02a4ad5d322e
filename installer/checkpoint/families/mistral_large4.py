"""Mistral Large 4: latent attention by an index, whose layers differ in what they turn and read.

Of four layers one knows no positions; some read the latents of an earlier one, which the cache then
holds once more. Queries, and those of the index, grow with the logarithm of their position, each
head by two numbers of its own. Angles are stretched by numbers that were learned. What sees images,
and what predicts further tokens, is left out. Tensors have their publisher's names.
Reference: Mistral Large 4 (2026), `MistralLarge4ForConditionalGeneration`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.families import deepseek, mistral3, parts
from installer.checkpoint.families.deepseek import LatentShape
from installer.checkpoint.graph import decoder, decoder_shape, experts, kinds, routed
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Attention, Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.indexed import Searchable
from installer.checkpoint.graph.kinds import Kinds, LayerKind
from installer.checkpoint.graph.latent import Latent, beside
from installer.checkpoint.graph.lightning import LatentSearch
from installer.checkpoint.graph.rope import STILL, Rope, read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_EPSILON = 1e-6
"""Of the index's norms, whatever the others have."""
_ALPHA = "lerope.alpha"
_EVERY = 4
"""So many layers have one without positions, if nothing else is said."""
_PLAIN = (
    (r"^model\.(?=layers\.|norm\.)", ""),
    (r"^model\.embed_tokens\.", "tok_embeddings."),
    (r"^lm_head\.", "output."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.q_proj\.", ".wq."),
    (r"\.o_proj\.", ".wo."),
    (r"\.kv_a_proj_with_mqa\.", ".wkv_a_with_mqa."),
    (r"\.kv_a_layernorm\.", ".kv_a_norm."),
    (r"\.kv_b_proj\.", ".wkv_b."),
    (r"\.mlp\.(?=gate\.|experts\.|shared_experts\.)", "."),
    (r"\.mlp\.", ".feed_forward."),
    (r"\.gate_proj\.", ".w1."),
    (r"\.down_proj\.", ".w2."),
    (r"\.up_proj\.", ".w3."),
)
"""What the blocks of other decoders call it, and what it is called here."""
_NAMES = tuple((re.compile(pattern), name) for pattern, name in _PLAIN)


@dataclass(frozen=True, slots=True)
class LargeShape(LatentShape):
    """Attributes:
    turns: of each layer, whether it knows positions.
    sources: of each layer, the one whose latents it reads.
    """

    turns: tuple[bool, ...] = ()
    sources: tuple[int, ...] = ()


def read(checkpoint: Checkpoint) -> LargeShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    architecture = "MistralLarge4ForConditionalGeneration"
    text, tied = parts.read_part(checkpoint, (architecture,), mistral3.OF_IMAGES)
    text.expect("model_type", "mistral_large4_text")
    text.expect("tie_word_embeddings", False)
    if tied and "tie_word_embeddings" in checkpoint.config:
        raise CheckpointError(
            "config.json: tie_word_embeddings is not supported",
            hint="this model has a table of outputs of its own",
        )
    return _read(text)


def build(graph: GraphBuilder, shape: LargeShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    graph.tensors.translate = native_name
    decoder.build_decoder(
        *(graph, _stretched(graph, shape), form, _nothing, routed.feed_forward),
        attend=_Search(shape).mix,
    )


def native_name(name: str) -> str:
    """What its publisher calls a tensor."""
    for pattern, replacement in _NAMES:
        name = pattern.sub(replacement, name)
    return name


class _Search(LatentSearch):
    """The attention of one graph."""

    def __init__(self, shape: LargeShape) -> None:
        assert shape.index is not None
        super().__init__(shape.latent, shape.index)
        still = replace(shape.latent, turned=0, plain=shape.latent.plain + shape.latent.turned)
        self._latents = [shape.latent if turns else still for turns in shape.turns]
        self._sources = shape.sources
        self._read: dict[int, tuple[ir.Value, ir.Value]] = {}
        """Keys and latents of the layers that have some of their own."""

    def mix(
        self,
        graph: GraphBuilder,
        shape: DecoderShape,
        attention: Attention,
        layer: int,
        at: str,
        x: ir.Value,
    ) -> ir.Value:
        """x [B, S, hidden] -> what the layer's attention adds to the stream."""
        assert isinstance(attention, Searchable)
        own, source = self._latents[layer], self._sources[layer]
        if source == layer:
            self._read[layer] = own.compressed(graph, shape, at, x)
        keys, latent = self._read[source]
        fresh = self.look(graph, shape, attention, layer, at, (x, x))
        queries = own.queries_of(graph, shape, at, x, None)
        queries = _grown(graph, attention, f"{at}.self_attn", queries, shape.heads, own.head_dim)
        heads = (queries, keys, beside(graph, keys, latent, fresh))
        return own.conclude(graph, shape, at, attention.attend(layer, heads, self.bias))

    def _asked(
        self, graph: GraphBuilder, shape: DecoderShape, form: Searchable, at: str, low: ir.Value
    ) -> ir.Value:
        epsilon = _EPSILON / shape.divisors(graph).into_attention ** 2
        normed = graph.layer_norm(low, f"{at}.q_input_norm", shape.hidden, epsilon)
        queries = self._made_of(graph, at, normed, shape.hidden)
        return _grown(graph, form, at, queries, self._index.heads, self._index.width)


def _grown(
    graph: GraphBuilder, form: Searchable, at: str, queries: ir.Value, heads: int, width: int
) -> ir.Value:
    """queries [B, S, heads * width], those of a head times s log(position + 1) + b, of its own s
    and b."""
    slope, base = (experts.vector(graph, f"{at}.ssmax_scaling.{n}", heads) for n in ("s", "b"))
    behind = graph.op("Add", form.positions(), graph.constant([1]))
    logarithm = graph.op("Log", graph.op("Cast", behind, to=ir.DataType.FLOAT))
    logarithm = graph.op("Unsqueeze", logarithm, graph.constant([2]))
    factors = graph.op("Add", graph.op("Mul", logarithm, slope), base)
    if graph.dtype != ir.DataType.FLOAT:
        factors = graph.op("Cast", factors, to=graph.dtype)
    apart = graph.op("Reshape", queries, graph.constant([0, 0, heads, width]))
    grown = graph.op("Mul", apart, graph.op("Unsqueeze", factors, graph.constant([3])))
    return graph.op("Reshape", grown, graph.constant([0, 0, heads * width]))


def _nothing(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    raise AssertionError("layers attend in their own way")


def _stretched(graph: GraphBuilder, shape: LargeShape) -> DecoderShape:
    """With the angles that the checkpoint's numbers make of those of config.json."""
    alpha = graph.tensors.vector(_ALPHA, shape.latent.turned // 2)

    def stretched(kind: LayerKind, *, turns: bool) -> LayerKind:
        if not turns:
            return kind
        frequencies = np.array(kind.rope.frequencies, np.float32) * np.exp(alpha)
        return replace(kind, rope=replace(kind.rope, frequencies=tuple(frequencies.tolist())))

    pairs = zip(shape.decoder.kinds, shape.turns, strict=True)
    return replace(
        shape.decoder, kinds=tuple(stretched(kind, turns=turns) for kind, turns in pairs)
    )


def _read(config: Settings) -> LargeShape:
    config.expect("attention_bias", False)
    config.expect("num_key_value_heads", config.integer("num_attention_heads"))
    # Of several groups the reference adds up the two best shares, which no published one has.
    config.expect("n_group", 1)
    config.expect("topk_group", 1)
    config.expect("norm_topk_prob", True)
    config.assume("norm_topk_prob", True)
    deepseek.expect_indexed(config)
    config.expect("head_dim", config.integer("qk_rope_head_dim"))
    layers = config.integer("num_hidden_layers")
    index = deepseek.read_index(config, interleaved=True)
    index = replace(index, shared=deepseek.read_shared(config))
    latent = replace(deepseek.read_latent(config, index), epsilon=config.number("rms_norm_eps"))
    turns = kinds.read_turned(config, layers, _EVERY)
    sources = _read_sources(config, turns)
    dense = routed.read_dense(config, config.whole("first_k_dense_replace", 1))
    mixture = routed.read_routed(config, dense=dense, scores="softmax")
    shape = _read_decoder(config, latent, turns)
    cap = config.number("final_logit_softcapping", 30.0)
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return LargeShape(replace(shape, mixture=mixture, score_cap=cap), latent, index, turns, sources)


def _read_sources(config: Settings, turns: tuple[bool, ...]) -> tuple[int, ...]:
    """Of each layer, whose latents it reads. The reference hands on those that the last layer
    stored which turns alike and is read by another, so that no other may be named."""
    layers = len(turns)
    sources = config.ids("kv_source_layers") or tuple(range(layers))
    if len(sources) == layers:
        stored: dict[bool, int] = {}
        for layer, source in enumerate(sources):
            if source == layer and layer in sources[layer + 1 :]:
                stored[turns[layer]] = layer
            if source not in (layer, stored.get(turns[layer])):
                break
        else:
            return sources
    raise CheckpointError(
        f"config.json: kv_source_layers does not name, for each of {layers} layers, itself or the "
        "last one before it that turns alike and is read by others",
        hint="the reference implementation shares latents in no other way",
    )


def _read_decoder(config: Settings, latent: Latent, turns: tuple[bool, ...]) -> DecoderShape:
    def read_kinds(config: Settings, _head_dim: int) -> Kinds:
        rope: Rope = replace(read_rope(config, latent.turned), interleaved=True)
        return tuple(LayerKind(rope if turned else STILL) for turned in turns)

    config.expect("qk_head_dim", latent.plain + latent.turned)
    shape = decoder_shape.read_decoder(config, kinds=read_kinds, head_dim=latent.head_dim)
    return replace(shape, kv_heads=1, scale=deepseek.read_scale(config, latent))
