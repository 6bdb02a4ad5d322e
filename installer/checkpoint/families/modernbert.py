"""ModernBERT as an encoder of whole texts, and as a reranker: pre-norm, angles, gates, no biases.

Every third layer sees the whole text and the others a window, each kind with angles of its own.
Reference: Warner et al., Smarter, Better, Faster, Longer (2024), `ModernBertModel`,
`ModernBertForSequenceClassification`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.families import cross_encoder
from installer.checkpoint.families.bert import declare_texts
from installer.checkpoint.families.cross_encoder import CrossEncoderShape
from installer.checkpoint.graph import pooling
from installer.checkpoint.graph.activations import ACTIVATIONS
from installer.checkpoint.graph.angles import Tables, angles
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.half_reader import token_bytes
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.pooling import EncoderShape
from installer.checkpoint.graph.rope import Basis, Rope, read_scaling
from installer.checkpoint.graph.sentence import Pooling, read_sentence
from installer.checkpoint.graph.table import Table
from installer.checkpoint.graph.whole_text import HeadSizes, WholeText, window_bytes
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_ROOT = "model."
_HARMLESS = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype"),
        *("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"),
        *("initializer_range", "initializer_cutoff_factor", "gradient_checkpointing"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id"),
        *("decoder_bias", "tie_word_embeddings", "sparse_prediction", "sparse_pred_ignore_index"),
        *("repad_logits_with_grad", "reference_compile", "deterministic_flash_attn"),
        *("_name_or_path", "use_cache", "layer_norm_eps"),  # `norm_eps` is what counts
    }
)
_OF_THE_CLASSIFIER = ("classifier_pooling", "classifier_bias", "classifier_activation")
_THETA: Mapping[str, tuple[str, float]] = {
    FULL: ("global_rope_theta", 160_000.0),
    SLIDING: ("local_rope_theta", 10_000.0),
}
_PERIOD = 3
"""Every third layer sees everything, from the first on, unless said otherwise."""


@dataclass(frozen=True, slots=True)
class ModernBertShape:
    """The numbers of the transformer. Counts, but for `epsilon` and `kinds`."""

    vocab: int
    hidden: int
    heads: int
    inner: int
    longest: int
    epsilon: float
    kinds: Kinds

    @property
    def context(self) -> int:
        return self.longest

    @property
    def types(self) -> int:
        return 1

    @property
    def sizes(self) -> HeadSizes:
        return HeadSizes.alike(self.hidden, self.heads, self.longest)

    @property
    def token_bytes(self) -> int:
        """As the manifest says it."""
        plain = token_bytes(self.hidden, self.inner, 3 * self.hidden)
        return plain + window_bytes(self.kinds, self.heads)


@dataclass(frozen=True, slots=True)
class Head:
    """What a reranker has behind its transformer."""

    pooling: Pooling
    bias: bool


def read(checkpoint: Checkpoint) -> EncoderShape[ModernBertShape]:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["ModernBertModel"], ["ModernBertForMaskedLM"])
    body = _read_body(config)
    config.ignore(*_OF_THE_CLASSIFIER)
    sentence = read_sentence(checkpoint, body.hidden)
    if sentence.pooling == "last":
        raise CheckpointError("the pooling of the last token belongs to a decoder")
    fewest = pooling.read_min_dimensions(config, pooling.width(sentence, body.hidden))
    config.finish(_HARMLESS)
    return EncoderShape(body, sentence, fewest)


def read_reranker(checkpoint: Checkpoint) -> CrossEncoderShape:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["ModernBertForSequenceClassification"])
    body = _read_body(config)
    config.expect("classifier_pooling", "cls", "mean")
    config.expect("classifier_activation", "gelu")
    mean = config.text("classifier_pooling", "cls") == "mean"
    head = Head("mean" if mean else "cls", config.flag("classifier_bias", False))
    return cross_encoder.read(checkpoint, config, body, head, _HARMLESS)


def build(graph: GraphBuilder, shape: EncoderShape[ModernBertShape]) -> None:
    """Write the graph."""
    ids, mask = declare_texts(graph)
    root = _ROOT if f"{_ROOT}final_norm.weight" in graph.tensors else ""
    x = _transform(graph, shape.body, ids, mask, root)
    pooled = pooling.pool(graph, x, mask, shape.sentence.pooling)
    pooling.conclude(graph, pooled, shape.sentence, shape.body.hidden)


def build_reranker(graph: GraphBuilder, shape: CrossEncoderShape) -> None:
    """Write the graph."""
    ids, mask = declare_texts(graph)
    body, head = shape.body, shape.head
    x = _transform(graph, body, ids, mask, _ROOT)
    x = graph.op("Cast", pooling.pool(graph, x, mask, head.pooling), to=graph.dtype)
    x = graph.linear(x, "head.dense", body.hidden, body.hidden, bias=head.bias)
    x = ACTIVATIONS["gelu"](graph, x, 1.0)
    x = _norm(graph, body, "head.norm", x)
    cross_encoder.score(graph, shape, x, "classifier", body.hidden)


def _read_body(config: Settings) -> ModernBertShape:
    for bias in ("attention_bias", "mlp_bias", "norm_bias"):
        config.expect(bias, False)
    config.expect("hidden_activation", "gelu")
    config.expect("position_embedding_type", "absolute")  # nobody reads it: angles are relative
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    longest = config.integer("max_position_embeddings")
    return ModernBertShape(
        vocab=config.integer("vocab_size"),
        hidden=hidden,
        heads=heads,
        inner=config.integer("intermediate_size"),
        longest=longest,
        epsilon=config.number("norm_eps", 1e-5),
        kinds=tuple(kind.within(longest) for kind in _read_kinds(config, hidden // heads)),
    )


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    ropes = _read_ropes(config, head_dim)
    reach = config.integer("local_attention", 128) // 2
    if reach == 0:
        config.expect("local_attention")
    kinds = {FULL: LayerKind(ropes[FULL]), SLIDING: LayerKind(ropes[SLIDING], reach + 1)}
    period = config.integer("global_attn_every_n_layers", _PERIOD)
    layers = range(config.integer("num_hidden_layers"))
    return read_kinds(config, kinds, [SLIDING if at % period else FULL for at in layers])


def _read_ropes(config: Settings, head_dim: int) -> dict[str, Rope]:
    """Angles of both kinds, in the older or the newer words."""
    context = config.integer("max_position_embeddings")
    parameters = config.section("rope_parameters")
    ropes: dict[str, Rope] = {}
    for name, (key, usual) in _THETA.items():
        theta = config.number(key, usual)
        section = parameters.section(name) if parameters is not None else None
        if section is not None:
            theta = section.number("rope_theta", theta)
        ropes[name] = read_scaling(section, Basis(theta, head_dim, context))
    if parameters is not None:
        parameters.finish()
    return ropes


def _transform(
    graph: GraphBuilder, shape: ModernBertShape, ids: ir.Value, mask: ir.Value, root: str
) -> ir.Value:
    """Token states [B, S, hidden]."""
    hidden = shape.hidden
    words = Table(graph, f"{root}embeddings.tok_embeddings.weight", shape.vocab, hidden)
    tables, attention = angles(graph, shape), WholeText(graph, shape.sizes, ids, mask)
    x = _norm(graph, shape, f"{root}embeddings.norm", graph.full(words.lookup(ids)))
    for layer, kind in enumerate(shape.kinds):
        at = f"{root}layers.{layer}"
        # The first layer has its norm in front of it already.
        normed = _norm(graph, shape, f"{at}.attn_norm", x) if layer else x
        x = graph.add(x, _attend(graph, shape, at, normed, attention, kind, tables[layer]))
        x = graph.add(x, _feed(graph, shape, at, _norm(graph, shape, f"{at}.mlp_norm", x)))
    return _norm(graph, shape, f"{root}final_norm", x)


def _attend(
    graph: GraphBuilder,
    shape: ModernBertShape,
    at: str,
    x: ir.Value,
    attention: WholeText,
    kind: LayerKind,
    tables: Tables,
) -> ir.Value:
    hidden = shape.hidden
    names = [f"{at}.attn.{name}" for name in ("query", "key", "value")]
    graph.tensors.divide(
        f"{at}.attn.Wqkv.weight", dict.fromkeys((f"{name}.weight" for name in names), hidden)
    )
    x = graph.operand(x)
    queries, keys, values = (graph.linear(x, name, hidden, hidden) for name in names)
    attended = attention.attend((queries, keys, values), kind, tables)
    return graph.linear(attended, f"{at}.attn.Wo", hidden, hidden)


def _feed(graph: GraphBuilder, shape: ModernBertShape, at: str, x: ir.Value) -> ir.Value:
    gate, up = f"{at}.mlp.gate", f"{at}.mlp.up"
    graph.tensors.divide(
        f"{at}.mlp.Wi.weight", dict.fromkeys((f"{gate}.weight", f"{up}.weight"), shape.inner)
    )
    x = graph.operand(x)
    product, scale = graph.gated(x, gate, up, shape.hidden, shape.inner, "gelu")
    return graph.linear(product, f"{at}.mlp.Wo", shape.inner, shape.hidden, scale=scale)


def _norm(graph: GraphBuilder, shape: ModernBertShape, name: str, x: ir.Value) -> ir.Value:
    return graph.layer_norm(x, name, shape.hidden, shape.epsilon, bias=False)
