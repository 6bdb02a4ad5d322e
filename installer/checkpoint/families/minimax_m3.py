"""MiniMax-M3: attention that reads blocks found by an index, and experts beside one for all.

Its gates are gpt-oss's, clamped, and its norms have gains that are counted from one. Of its
checkpoints, which see images and films as well, the language model is built and the rest is left
out, as of Gemma 3 (docs/decisions/0173-gemma-3.md); so are layers that predict further tokens. The
index's keys stand in the cached heads, half behind keys and half behind values (indexed.py).
Reference: MiniMax-M3 (2026), `MiniMaxM3SparseForConditionalGeneration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.families import minimax_m2, mixtral, qwen3
from installer.checkpoint.graph import decoder, decoder_shape, experts
from installer.checkpoint.graph.blocks import Blocks
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Attention, Form
from installer.checkpoint.graph.decoder_shape import AroundDecoder, DecoderShape, Norms
from installer.checkpoint.graph.experts import Choice, Mixture
from installer.checkpoint.graph.indexed import Search, Searchable, widen
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind, read_dense, read_kinds
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_SPARSE = "minimax_m3_sparse"
_UNIT = 16
_NORMS = Norms(heads=True, offset=1.0)
_WORDS, _OUTPUT = "language_model.model", "language_model.lm_head.weight"
_OF_IMAGES = (
    *("vision_config", "image_token_index", "video_token_index", "image_token_id"),
    *("video_token_id", "projector_hidden_size", "projector_hidden_act", "process_image_mode"),
    *("multimodal_projector_bias", "vision_feature_layer", "vision_feature_select_strategy"),
    *("image_grid_pinpoints", "image_seq_length", "img_token_compression_config"),
    "num_reward_heads",
)
_FURTHER = ("num_mtp_modules", "num_nextn_predict_layers", "mtp_transformer_layers", "use_mtp")
_NAMES: Mapping[str, tuple[str, str, int]] = {
    "heads": ("index_n_heads", "sparse_num_index_heads", 4),
    "width": ("index_head_dim", "sparse_index_dim", 128),
    "size": ("index_block_size", "sparse_block_size", 128),
    "chosen": ("index_topk_blocks", "sparse_topk_blocks", 16),
    "near": ("index_local_blocks", "sparse_local_block", 1),
}
"""Of the index: what the reference and the publisher call a number, and what it usually is."""


@dataclass(frozen=True, slots=True)
class BlockShape(AroundDecoder):
    """A decoder with room for an index in its cached heads.

    Attributes:
        head_dim: of its own heads.
        index: of some layers.
        indexed: the layers that have it.
        dense_inner: width of the feed-forward of layers without experts.
        factor: what the mixture's result is multiplied by.
    """

    head_dim: int
    index: Blocks
    indexed: frozenset[int]
    dense_inner: int
    factor: float


def read(checkpoint: Checkpoint) -> BlockShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["MiniMaxM3SparseForConditionalGeneration"])
    text = config.needed("text_config")
    config.ignore(*_OF_IMAGES)
    config.expect("tie_word_embeddings", False)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return _read(text)


def build(graph: GraphBuilder, shape: BlockShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    mixing = _BlockSearch(shape)
    decoder.build_decoder(
        *(graph, shape.decoder, form, qwen3.project, mixing.feed_forward), attend=mixing.mix
    )


def _read(config: Settings) -> BlockShape:
    for key, value in (
        ("use_gemma_norm", True),
        ("attention_output_gate", False),
        ("use_qk_norm", True),
        ("qk_norm_type", "per_head"),
        ("scoring_func", "sigmoid"),
        ("use_routing_bias", True),
        ("n_shared_experts", 1),
        ("sliding_window", None),
    ):
        config.expect(key, value)
    config.ignore("router_jitter_noise", *_FURTHER)
    activation = ("hidden_act", "silu" if config.text("hidden_act") == "silu" else "swigluoai")
    config.assume("rms_norm_eps", 1e-6)
    layers = config.integer("num_hidden_layers")
    sparse = config.section("sparse_attention_config")
    indexed = _read_indexed(config, sparse, layers)
    index = _read_index(config, sparse)
    shape = decoder_shape.read_decoder(config, kinds=_kinds, activation=activation)
    head_dim = shape.head_dim
    share, rest = divmod(index.width, 2 * shape.kv_heads)
    if rest or share % _UNIT or shape.heads % index.heads:
        raise CheckpointError(
            f"config.json: an index of {index.heads} heads of {index.width} numbers does not fit "
            f"behind {shape.kv_heads} heads of keys for {shape.heads} of queries",
            hint="the checkpoint's config.json belongs to another model",
        )
    shape = replace(
        shape,
        head_dim=head_dim + share,
        norms=_NORMS,
        root=_WORDS,
        output=_OUTPUT,
        mixture=_read_mixture(config, shape.inner, layers),
    )
    result = BlockShape(
        *(shape, head_dim, index, indexed),
        dense_inner=config.integer("dense_intermediate_size"),
        factor=config.number("routed_scaling_factor", 1.0),
    )
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return result


def _read_indexed(config: Settings, sparse: Settings | None, layers: int) -> frozenset[int]:
    """The layers with an index: what `layer_types` says, or the publisher's own words."""
    names = [FULL] * layers
    if sparse is not None:
        sparse.expect("use_sparse_attention", True)
        sparse.expect("sparse_score_type", "max")
        sparse.expect("sparse_init_block", 0)
        marks = sparse.ids("sparse_attention_freq")
        sparse.expect("sparse_disable_index_value", list(marks))
        names = [_SPARSE if mark else FULL for mark in marks]
    names = list(config.texts("layer_types", names))
    if len(names) != layers or not {_SPARSE, FULL} >= set(names):
        raise CheckpointError(
            f"config.json: layer_types has {len(names)} layers of {', '.join(sorted(set(names)))}",
            hint=f"this model needs {layers} of {FULL}, {_SPARSE}",
        )
    return frozenset(at for at, name in enumerate(names) if name == _SPARSE)


def _read_index(config: Settings, sparse: Settings | None) -> Blocks:
    numbers = {}
    for field, (name, published, usual) in _NAMES.items():
        number = config.integer(name, usual)
        if sparse is not None and published in sparse:
            number = sparse.integer(published)
            config.expect(name, number)
        numbers[field] = number
    if sparse is not None:
        sparse.finish()
    return Blocks(**numbers)


def _read_mixture(config: Settings, inner: int, layers: int) -> Mixture:
    marks = config.ids("moe_layer_freq") or (1,) * layers
    dense = read_dense(config, layers, {at for at, mark in enumerate(marks) if not mark})
    return Mixture(
        experts=config.integer("num_local_experts"),
        chosen=config.integer("num_experts_per_tok"),
        inner=inner,
        alpha=config.number("swiglu_alpha", 1.702),
        beta=1.0,
        limit=config.number("swiglu_limit", 7.0),
        dense=dense,
        shared=config.integer("shared_intermediate_size"),
    )


class _BlockSearch:
    """The layers of one graph."""

    def __init__(self, shape: BlockShape) -> None:
        self._shape = shape
        self._places = shape.index.places(shape.decoder.kv_heads, shape.head_dim)
        self._search: Search | None = None

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
        fresh, bias = None, None
        if layer in self._shape.indexed:
            fresh, bias = self._find(graph, shape, attention, layer, at, x)
        plain = self._plain(shape)
        heads = widen(graph, shape, plain.head_dim, qwen3.project(graph, plain, at, x), fresh)
        attended = attention.attend(layer, heads, bias)
        widths = (shape.head_dim, plain.head_dim)
        read = decoder.narrow_heads(graph, attended, shape.heads, *widths)
        return decoder.conclude_plainly(graph, plain, at, read)

    def feed_forward(
        self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value
    ) -> ir.Value:
        """The chosen experts' results and that of the one for all; or one feed-forward alone."""
        mixture = shape.mixture
        assert mixture is not None
        if mixture.is_dense(at):
            return _gated(graph, shape, x, f"{at}.mlp", self._shape.dense_inner)

        def choose(scores: ir.Value, mixture: Mixture) -> Choice:
            name = f"{at}.block_sparse_moe.e_score_correction_bias"
            correction = experts.vector(graph, name, mixture.experts)
            chosen = experts.choose_by_sigmoid(graph, scores, correction, mixture)
            return replace(chosen, total=graph.constant([self._shape.factor]))

        mixed = mixtral.mix(graph, shape, at, x, choose)
        for_all = f"{at}.block_sparse_moe.shared_experts"
        return graph.add(mixed, _gated(graph, shape, x, for_all, mixture.shared))

    def _plain(self, shape: DecoderShape) -> DecoderShape:
        """The numbers of its own heads."""
        return replace(shape, head_dim=self._shape.head_dim)

    def _find(
        self,
        graph: GraphBuilder,
        shape: DecoderShape,
        form: Searchable,
        layer: int,
        at: str,
        x: ir.Value,
    ) -> tuple[ir.Value, ir.Value]:
        """A key by which later tokens find these, [B, S, width], and what shuts others out."""
        index, at = self._shape.index, f"{at}.self_attn.index"
        if self._search is None:
            self._search = Search(graph, form, self._places)
        shape = replace(shape, head_dim=index.width)
        turned = []
        for name, heads in (("q", index.heads), ("k", 1)):
            made = graph.linear(x, f"{at}_{name}_proj", shape.hidden, heads * index.width)
            made = decoder.head_norm(graph, shape, f"{at}_{name}_norm", made, heads)
            turned.append(form.turn(layer, made, heads, index.width, interleaved=False))
        queries, fresh = turned
        keys = self._search.recall(layer, fresh, shape.kv_heads)
        return fresh, index.find(graph, self._search, queries, keys, shape.heads)


def _gated(graph: GraphBuilder, shape: DecoderShape, x: ir.Value, at: str, inner: int) -> ir.Value:
    """What one expert computes, in the module `at`, whose width is `inner`."""
    assert shape.mixture is not None
    names = tuple(f"{at}.{name}_proj" for name in ("gate", "up", "down"))
    divided = shape.divisors(graph).into_feed_forward
    return experts.clamped(graph, x, shape.mixture, names, shape.hidden, inner, divided=divided)


def _kinds(config: Settings, head_dim: int) -> Kinds:
    """All layers turn alike, whether they have an index or not."""
    kind = LayerKind(minimax_m2.read_angles(config, head_dim))
    layers = config.integer("num_hidden_layers")
    return read_kinds(config, {FULL: kind, _SPARSE: kind}, [FULL] * layers)
