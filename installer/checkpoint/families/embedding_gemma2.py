"""EmbeddingGemma 2, for texts: Gemma's blocks in both directions, and a second signal in each.

That signal is made of the embeddings alone, once for all layers, and gates a narrow way beside the
stream. Layers that see the whole text have wider heads than those that see a window. What sees
images and hears is left out. Reference: `EmbeddingGemma2Model` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from appliance.bundle.specs import EncoderSpec
from appliance.errors import CheckpointError
from installer.checkpoint.families.bert import declare_texts
from installer.checkpoint.graph import pooling
from installer.checkpoint.graph.activations import ACTIVATIONS
from installer.checkpoint.graph.angles import Tables, angles
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder_shape import HARMLESS_KEYS
from installer.checkpoint.graph.half_reader import token_bytes
from installer.checkpoint.graph.heads import read_heads
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import Basis, Rope, read_scaling
from installer.checkpoint.graph.sentence import Dense, Sentence, read_sentence
from installer.checkpoint.graph.table import Table
from installer.checkpoint.graph.whole_text import HeadSizes, WholeText, window_bytes
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_ROOT = "language_model"
_THETA = {FULL: 1_000_000.0, SLIDING: 10_000.0}
_PERIOD = 6
"""Every sixth layer sees everything, and the last, unless said otherwise."""
_LONGEST = 8192
"""Tokens of a text where no file says it: of the 262,144 there could be, angles take 0.8 GB."""
_OF_OTHERS = (
    *("vision_config", "audio_config", "boi_token_id", "eoi_token_id", "image_token_id"),
    *("video_token_id", "boa_token_id", "eoa_token_index", "audio_token_id"),
)
_SIGNAL_BYTES = 8
"""Of a number of the second signal, in the precision of the graph and before its norm."""


@dataclass(frozen=True, slots=True)
class EmbedderShape:
    """The numbers of the text model. Counts, but for `epsilon` and `kinds`.

    Attributes:
        sizes: of the heads of each layer.
        signal: numbers of the second signal, in each layer.
        projected: numbers of a state that goes into the pooling.
    """

    vocab: int
    hidden: int
    inner: int
    context: int
    epsilon: float
    kinds: Kinds
    sizes: tuple[HeadSizes, ...]
    signal: int
    projected: int
    sentence: Sentence
    min_dimensions: int | None

    def spec(self) -> EncoderSpec:
        heads = max(sizes.heads for sizes in self.sizes)
        attended = max((s.heads + 2 * s.kv_heads) * s.head_dim for s in self.sizes)
        return pooling.spec(
            *(self.sentence, self.projected, self.context, self.min_dimensions),
            vocab=self.vocab,
            token_bytes=token_bytes(self.hidden, self.inner, 2 * attended)
            + window_bytes(self.kinds, heads)
            + _SIGNAL_BYTES * self.signal * len(self.kinds),
        )


def read(checkpoint: Checkpoint) -> EmbedderShape:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["EmbeddingGemma2Model"])
    config.ignore(*_OF_OTHERS)
    text = config.needed("text_config")
    projected = text.integer("embedding_dim")
    sentence = read_sentence(checkpoint, projected)
    if sentence.pooling == "last":
        raise CheckpointError("the pooling of the last token belongs to a decoder")
    fewest = pooling.read_min_dimensions(config, pooling.width(sentence, projected))
    config.finish(HARMLESS_KEYS)
    text.expect("attention_bias", False)
    text.expect("hidden_activation", "gelu_pytorch_tanh")
    context = min(text.integer("max_position_embeddings"), sentence.max_length or _LONGEST)
    names, sizes = _read_heads(text, context)
    kinds = _read_kinds(text, names, sizes, context)
    shape = EmbedderShape(
        vocab=text.integer("vocab_size"),
        hidden=text.integer("hidden_size"),
        inner=text.integer("intermediate_size"),
        context=context,
        epsilon=text.number("rms_norm_eps", 1e-6),
        kinds=tuple(kind.within(context) for kind in kinds),
        sizes=sizes,
        signal=text.integer("hidden_size_per_layer_input"),
        projected=projected,
        sentence=sentence,
        min_dimensions=fewest,
    )
    text.finish(HARMLESS_KEYS)
    return shape


def build(graph: GraphBuilder, shape: EmbedderShape) -> None:
    """Write the graph."""
    ids, mask = declare_texts(graph)
    words = Table(graph, f"{_ROOT}.embed_tokens.weight", shape.vocab, shape.hidden)
    x = graph.residual(words.lookup(ids), factor=shape.hidden**0.5, wide=True)
    signals, tables = _signals(graph, shape, x), angles(graph, shape)
    forms = {sizes: WholeText(graph, sizes, ids, mask) for sizes in dict.fromkeys(shape.sizes)}
    for layer, sizes in enumerate(shape.sizes):
        at = f"{_ROOT}.layers.{layer}"
        x = _attend(graph, shape, layer, x, forms[sizes], tables[layer])
        x = _feed(graph, shape, at, x)
        x = _heed(graph, shape, f"{at}.ple_block", x, signals[layer])
        factor = float(graph.tensors.vector(f"{at}.layer_scalar", 1)[0])
        x = graph.residual(x, factor=factor, wide=True)
    x = graph.norm(x, f"{_ROOT}.norm.weight", shape.hidden, shape.epsilon, wide=True)
    pooled = pooling.pool(graph, x, mask, shape.sentence.pooling)
    # The reference projects each token; of the mean it is the same, and once for a text.
    names = (f"{_ROOT}.embedding_projection", shape.hidden, shape.projected)
    dense = (Dense(*names, bias=False, activation="Identity"), *shape.sentence.dense)
    pooling.conclude(graph, pooled, replace(shape.sentence, dense=dense), shape.hidden)


def _read_heads(text: Settings, context: int) -> tuple[list[str], tuple[HeadSizes, ...]]:
    """The kind and the heads of each layer."""
    count, heads = text.integer("num_hidden_layers"), text.integer("num_attention_heads")
    period = text.integer("sliding_window_pattern", _PERIOD)
    usual = [SLIDING if at % period else FULL for at in range(1, count + 1)]
    names = list(text.texts("layer_types", [*usual[:-1], FULL]))
    wide = text.integer("num_global_key_value_heads", 1), text.integer("global_head_dim", 512)
    plain = text.integer("num_key_value_heads"), text.integer("head_dim")
    found = read_heads(text, names, plain, wide)
    if names[-1:] != [FULL]:
        raise CheckpointError("config.json: layer_types does not end with full_attention")
    return names, tuple(HeadSizes(heads, *sizes, 1.0, context) for sizes in found)


def _read_kinds(
    text: Settings, names: Sequence[str], sizes: Sequence[HeadSizes], context: int
) -> Kinds:
    """Windows and angles; heads of one kind are alike, or their angles would not be."""
    parameters = text.section("rope_parameters")
    ropes: dict[str, Rope] = {}
    for name, theta in _THETA.items():
        widths = {one.head_dim for kind, one in zip(names, sizes, strict=True) if kind == name}
        section = parameters.section(name) if parameters is not None else None
        if section is not None:
            theta = section.number("rope_theta", theta)
        if len(widths) > 1:
            raise CheckpointError(f"config.json: per_layer_config has several widths of {name}")
        if widths:
            ropes[name] = read_scaling(section, Basis(theta, widths.pop(), context))
    if parameters is not None and len(ropes) == len(_THETA):
        parameters.finish()
    windows = {FULL: None, SLIDING: text.integer("sliding_window", 512) + 1}
    kinds = {name: LayerKind(rope, windows[name]) for name, rope in ropes.items()}
    return read_kinds(text, kinds, names)


def _signals(graph: GraphBuilder, shape: EmbedderShape, x: ir.Value) -> Sequence[ir.Value]:
    """The second signal of each layer, [B, S, signal]."""
    count, at = len(shape.kinds), f"{_ROOT}.ple"
    width = count * shape.signal
    y = graph.linear(graph.operand(x), f"{at}.per_layer_model_projection", shape.hidden, width)
    # The norm takes the factor of the reference, hidden^-0.5, but for its epsilon.
    epsilon = shape.epsilon * shape.hidden
    name = f"{at}.per_layer_projection_norm.weight"
    y = graph.norm_heads(y, count, name, shape.signal, epsilon)
    return graph.ops("Split", y, graph.constant([shape.signal] * count), outputs=count, axis=-1)


def _attend(
    graph: GraphBuilder,
    shape: EmbedderShape,
    layer: int,
    x: ir.Value,
    form: WholeText,
    tables: Tables,
) -> ir.Value:
    """x with what the layer's heads read added."""
    at, by, sizes, hidden = (
        f"{_ROOT}.layers.{layer}",
        graph.shrink,
        shape.sizes[layer],
        shape.hidden,
    )
    epsilon = shape.epsilon / by**2
    name = f"{at}.input_layernorm.weight"
    normed = graph.norm(x, name, hidden, shape.epsilon, divided=by)
    at = f"{at}.self_attn"
    counts = {"q": sizes.heads, "k": sizes.kv_heads, "v": sizes.kv_heads}
    queries, keys, values = (
        graph.linear(normed, f"{at}.{n}_proj", hidden, count * sizes.head_dim)
        for n, count in counts.items()
    )
    width = sizes.head_dim
    queries = graph.norm_heads(queries, sizes.heads, f"{at}.q_norm.weight", width, epsilon)
    keys = graph.norm_heads(keys, sizes.kv_heads, f"{at}.k_norm.weight", width, epsilon)
    values = graph.norm_heads_plainly(values, sizes.kv_heads, width, epsilon)
    attended = form.attend((queries, keys, values), shape.kinds[layer], tables)
    result = graph.linear(attended, f"{at}.o_proj", sizes.heads * width, hidden)
    return _added(graph, shape, x, result, f"{_ROOT}.layers.{layer}.post_attention_layernorm", 1)


def _feed(graph: GraphBuilder, shape: EmbedderShape, at: str, x: ir.Value) -> ir.Value:
    """x with what the feed-forward says added."""
    by, hidden, inner = graph.shrink, shape.hidden, shape.inner
    name = f"{at}.pre_feedforward_layernorm.weight"
    normed = graph.norm(x, name, hidden, shape.epsilon, divided=by)
    names = (f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj")
    product, scale = graph.gated(normed, *names, hidden, inner, "gelu_tanh", divided=by)
    result = graph.linear(product, f"{at}.mlp.down_proj", inner, hidden, scale=scale)
    return _added(graph, shape, x, result, f"{at}.post_feedforward_layernorm", by**2)


def _heed(
    graph: GraphBuilder, shape: EmbedderShape, at: str, x: ir.Value, signal: ir.Value
) -> ir.Value:
    """x with what the second signal lets through added."""
    by, small = graph.shrink**2, x
    if by != 1:
        small = graph.op("Mul", graph.full(x), graph.constant([1 / by]))
    small = graph.op("Cast", small, to=graph.dtype)
    gate = graph.linear(small, f"{at}.per_layer_input_gate", shape.hidden, shape.signal)
    opened = ACTIVATIONS["gelu_tanh"](graph, gate, by)
    product = graph.op("Mul", opened, signal)
    result = graph.linear(product, f"{at}.per_layer_projection", shape.signal, shape.hidden)
    return _added(graph, shape, x, result, f"{at}.post_per_layer_input_norm", by)


def _added(
    graph: GraphBuilder, shape: EmbedderShape, x: ir.Value, result: ir.Value, name: str, by: float
) -> ir.Value:
    """x and the norm of a result that is divided `by` a number."""
    epsilon = shape.epsilon / by**2
    return graph.add(x, graph.norm(result, f"{name}.weight", shape.hidden, epsilon, wide=True))
