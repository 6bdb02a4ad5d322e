"""Muse Glimmer, dense: gated heads, which know no positions in every fourth layer.

The other layers see a window and turn. Queries and keys are normed by no gain, tokens' vectors too;
all that a layer adds is normed once more, and scores are bent towards a bound. Reference: Muse
Glimmer (2026), `MuseGlimmerForConditionalGeneration`. What sees images: muse_sight.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.gated_heads import GatedHeads
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import STILL, read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

OF_IMAGES = frozenset(
    {
        *("vision_config", "image_token_id", "video_token_id", "out_hidden_size"),
        *("projector_hidden_size", "projector_hidden_act"),
    }
)
"""Keys of what sees beside a language model."""
_NORMS = Norms(
    before_attention="input_layernorm",
    after_attention="post_attention_layernorm",
    before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm",
    heads=True,
    offset=1.0,
    last_offset=0.0,
)
_EVERY = 4
"""Every fourth layer, counted from the last, sees everything and knows no positions."""
_AFTER_EPSILON, _CAP = 1e-8, 20.0
_SHARPNESS, _SCORES = 3.87, 0.19611613513818404


def read_words(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json, the language model's part.

    Raises CheckpointError naming a key that this graph cannot express.
    """
    config = checkpoint.settings("config.json")
    return read_glimmer(read_part(config, "MuseGlimmer", "muse_glimmer_text", OF_IMAGES))


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms, of the tensors by the names that there are."""
    heads = GatedHeads(project)
    shape = shape.located(graph.tensors)
    decoder.build_decoder(graph, shape, form, heads.project, decoder.swiglu, heads.conclude)


def read_part(
    config: Settings, name: str, model_type: str, others: Collection[str] = ()
) -> Settings:
    """What config.json says of the language model; `others` are keys of what is beside it."""
    config.expect("architectures", [f"{name}ForConditionalGeneration"])
    text = config.needed("text_config")
    text.expect("model_type", model_type)
    config.expect("tie_word_embeddings", False)
    config.finish(decoder_shape.HARMLESS_KEYS | frozenset(others))
    return text


def read_text(
    config: Settings,
    *,
    activation: str = "hidden_activation",
    theta: float = 10_000.0,
    sharpness: float = _SHARPNESS,
    scores: float = _SCORES,
) -> DecoderShape:
    """Read what the decoders of both Muses have; the last four are what an absent key means."""
    for key in ("attention_bias", "tie_word_embeddings"):
        config.expect(key, False)
    shape = decoder_shape.read_decoder(
        config, kinds=partial(_read_kinds, theta=theta), activation=(activation, "silu")
    )
    return replace(
        shape,
        scale=shape.scale * config.number("qk_scale_factor", sharpness),
        norms=replace(_NORMS, after_epsilon=config.number("post_norm_eps", _AFTER_EPSILON)),
        embedding_normed=True,
        score_scale=config.number("output_multiplier", scores),
        score_cap=config.number("final_logit_softcapping", _CAP),
    )


def project(
    graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value
) -> tuple[Heads, ir.Value]:
    """Normed queries and keys, values, and a gate for each number that heads read."""
    queries, keys, values = decoder.project(graph, shape, at, x, bias=False)
    # Apart from them: an operator of the native graphs multiplies with three matrices at most.
    width, at = shape.head_dim, f"{at}.self_attn.gate_proj"
    gate = graph.linear(x, at, shape.hidden, shape.heads * width)
    epsilon = shape.epsilon / shape.divisors(graph).into_attention ** 2
    queries, keys = (
        graph.norm_heads_plainly(heads, count, width, epsilon)
        for heads, count in ((queries, shape.heads), (keys, shape.kv_heads))
    )
    return (queries, keys, values), gate


def read_glimmer(config: Settings) -> DecoderShape:
    """All keys of Glimmer's language model."""
    shape = read_text(config)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return replace(shape, wide=True)


def _read_kinds(config: Settings, head_dim: int, *, theta: float) -> Kinds:
    """Of each layer: whether it turns, and whether it sees a window, are two keys."""
    layers = config.integer("num_hidden_layers")
    far = [(layers - 1 - at) % _EVERY == 0 for at in range(layers)]
    rope = read_rope(config, head_dim, theta=theta)
    window = config.integer("sliding_window") if "sliding_window" in config else None
    kinds = {FULL: LayerKind(STILL)}
    if window is not None:
        kinds[SLIDING] = LayerKind(STILL, window)
    found = read_kinds(config, kinds, [FULL if one else SLIDING for one in far])
    theta = (config.section("rope_parameters") or config).number("rope_theta", theta)
    turned = _read_turned(config, [0.0 if one else theta for one in far], theta)
    return tuple(
        replace(kind, rope=rope) if turns else kind
        for kind, turns in zip(found, turned, strict=True)
    )


def _read_turned(config: Settings, usual: Sequence[float], theta: float) -> Sequence[bool]:
    """Whether each layer turns: the reference turns all that do by one base, whatever is said."""
    key = "layer_rope_theta"
    bases = config.numbers(key, len(usual), zeros=True) if key in config else usual
    if not {0.0, theta} >= set(bases):
        raise CheckpointError(
            f"config.json: {key} has {sorted(set(bases))}, where layers turn by {theta} or not",
            hint="the reference turns all layers alike; the checkpoint differs from it",
        )
    return [base != 0 for base in bases]
