"""Encoders with BERT's norms, but angles for positions and gates in the feed-forward: GTE.

It is built as an embedder and as a reranker; Nomic has the same blocks (nomic.py). Reference: Zhang
et al., mGTE (2024), `GteModel`, `GteForSequenceClassification`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.families import cross_encoder
from installer.checkpoint.families.bert import HARMLESS_KEYS, declare_texts
from installer.checkpoint.families.cross_encoder import CrossEncoderShape
from installer.checkpoint.graph import pooling
from installer.checkpoint.graph.activations import ACTIVATIONS, Activation
from installer.checkpoint.graph.angles import angles
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.half_reader import token_bytes
from installer.checkpoint.graph.kinds import Kinds, LayerKind
from installer.checkpoint.graph.pooling import EncoderShape
from installer.checkpoint.graph.rope import read_rope
from installer.checkpoint.graph.sentence import read_sentence
from installer.checkpoint.graph.table import Table
from installer.checkpoint.graph.whole_text import HeadSizes, WholeText
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings


@dataclass(frozen=True, slots=True)
class Parts:
    """How a family names its tensors, and what of it differs.

    Attributes:
        up, gate: of the feed-forward; one name for both if they are stored together, in this order.
        bias: whether attention and the feed-forward's last layer have biases.
        types: how many of tokens there are, where config.json does not say it.
    """

    layers: str
    embedding_norm: str
    heads: str
    output: str
    up: str
    gate: str
    down: str
    norms: tuple[str, str]
    bias: bool
    activation: Activation
    types: int


_GTE = Parts(
    layers="encoder.layer",
    embedding_norm="embeddings.LayerNorm",
    heads="attention.qkv_proj",
    output="attention.o_proj",
    up="mlp.up_gate_proj",
    gate="mlp.up_gate_proj",
    down="mlp.down_proj",
    norms=("attn_ln", "mlp_ln"),
    bias=True,
    activation="gelu",
    types=1,
)
_GTE_EXPECTED: Mapping[str, object] = {
    "hidden_act": "gelu",
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "pack_qkv": True,
    "position_embedding_type": "rope",
}
_GTE_HARMLESS = HARMLESS_KEYS | {"unpad_inputs", "use_memory_efficient_attention"}
_POOLER, _LABEL = "pooler.dense", "classifier"


@dataclass(frozen=True, slots=True)
class RotaryBertShape:
    """The numbers of the transformer. Counts, but for `epsilon`, `kinds` and `parts`."""

    vocab: int
    hidden: int
    heads: int
    inner: int
    longest: int
    types: int
    epsilon: float
    kinds: Kinds
    parts: Parts

    @property
    def context(self) -> int:
        return self.longest

    @property
    def sizes(self) -> HeadSizes:
        return HeadSizes.alike(self.hidden, self.heads, self.longest)

    @property
    def token_bytes(self) -> int:
        """As the manifest says it."""
        return token_bytes(self.hidden, self.inner, 3 * self.hidden)


def read_gte(checkpoint: Checkpoint) -> EncoderShape[RotaryBertShape]:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["GteModel"])
    expect_all(config, _GTE_EXPECTED)
    shape = read_encoder(checkpoint, config, _GTE, theta=160_000.0)
    config.ignore("id2label", "label2id")
    config.finish(_GTE_HARMLESS)
    return shape


def read_gte_reranker(checkpoint: Checkpoint) -> CrossEncoderShape:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["GteForSequenceClassification"])
    expect_all(config, _GTE_EXPECTED)
    config.expect("type_vocab_size", 0, 1)
    body = _read_body(config, _GTE, theta=160_000.0)
    return cross_encoder.read(checkpoint, config, body, None, _GTE_HARMLESS)


def build(graph: GraphBuilder, shape: EncoderShape[RotaryBertShape]) -> None:
    """Write the graph."""
    ids, mask = declare_texts(graph)
    x = _transform(graph, shape.body, ids, mask, "")
    pooled = pooling.pool(graph, x, mask, shape.sentence.pooling)
    pooling.conclude(graph, pooled, shape.sentence, shape.body.hidden)


def build_reranker(graph: GraphBuilder, shape: CrossEncoderShape) -> None:
    """Write the graph."""
    ids, mask = declare_texts(graph)
    body, root = shape.body, "gte."
    first = pooling.first_row(graph, _transform(graph, body, ids, mask, root))
    hidden = body.hidden
    x = graph.linear(graph.operand(first), f"{root}{_POOLER}", hidden, hidden, bias=True)
    cross_encoder.score(graph, shape, graph.op("Tanh", x), _LABEL, hidden)


def expect_all(config: Settings, expected: Mapping[str, object]) -> None:
    for key, value in expected.items():
        config.expect(key, value)


def read_encoder(
    checkpoint: Checkpoint, config: Settings, parts: Parts, *, theta: float
) -> EncoderShape[RotaryBertShape]:
    body = _read_body(config, parts, theta=theta)
    sentence = read_sentence(checkpoint, body.hidden)
    if sentence.pooling == "last":
        raise CheckpointError("the pooling of the last token belongs to a decoder")
    fewest = pooling.read_min_dimensions(config, pooling.width(sentence, body.hidden))
    return EncoderShape(body, sentence, fewest)


def _read_body(config: Settings, parts: Parts, *, theta: float) -> RotaryBertShape:
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = hidden // heads
    config.expect("head_dim", head_dim)
    rope = read_rope(config, head_dim, theta=theta)
    return RotaryBertShape(
        vocab=config.integer("vocab_size"),
        hidden=hidden,
        heads=heads,
        inner=config.integer("intermediate_size"),
        longest=config.integer("max_position_embeddings"),
        types=config.whole("type_vocab_size", parts.types),
        epsilon=config.number("layer_norm_eps", 1e-12),
        kinds=(LayerKind(rope),) * config.integer("num_hidden_layers"),
        parts=parts,
    )


def _transform(
    graph: GraphBuilder, shape: RotaryBertShape, ids: ir.Value, mask: ir.Value, root: str
) -> ir.Value:
    """Token states [B, S, hidden]."""
    parts, hidden = shape.parts, shape.hidden
    x = _embed(graph, shape, ids, root)
    attention, tables = WholeText(graph, shape.sizes, ids, mask), angles(graph, shape)
    for layer, kind in enumerate(shape.kinds):
        at = f"{root}{parts.layers}.{layer}"
        inner = graph.operand(x)
        together = graph.linear(inner, f"{at}.{parts.heads}", hidden, 3 * hidden, bias=parts.bias)
        queries, keys, values = _split(graph, together, 3, hidden)
        attended = attention.attend((queries, keys, values), kind, tables[layer])
        result = graph.linear(attended, f"{at}.{parts.output}", hidden, hidden, bias=parts.bias)
        x = graph.layer_norm(x, f"{at}.{parts.norms[0]}", hidden, shape.epsilon, result)
        result = _feed(graph, shape, at, graph.operand(x))
        x = graph.layer_norm(x, f"{at}.{parts.norms[1]}", hidden, shape.epsilon, result)
    return x


def _embed(graph: GraphBuilder, shape: RotaryBertShape, ids: ir.Value, root: str) -> ir.Value:
    hidden, at = shape.hidden, f"{root}embeddings"
    words = Table(graph, f"{at}.word_embeddings.weight", shape.vocab, hidden)
    x = graph.full(words.lookup(ids))
    if shape.types:
        # All tokens are of the first type.
        table = f"{at}.token_type_embeddings.weight"
        graph.tensors.expect(table, (shape.types, hidden))
        (first,) = graph.tensors.rows_at(table, [0])
        x = graph.op("Add", x, graph.floats(f"{table}.first", (hidden,), [np.asarray(first)]))
    return graph.layer_norm(x, f"{root}{shape.parts.embedding_norm}", hidden, shape.epsilon)


def _feed(graph: GraphBuilder, shape: RotaryBertShape, at: str, x: ir.Value) -> ir.Value:
    parts, hidden, inner = shape.parts, shape.hidden, shape.inner
    if parts.up == parts.gate:
        together = graph.linear(x, f"{at}.{parts.up}", hidden, 2 * inner)
        up, gate = _split(graph, together, 2, inner)
    else:
        up, gate = (graph.linear(x, f"{at}.{n}", hidden, inner) for n in (parts.up, parts.gate))
    product = graph.op("Mul", ACTIVATIONS[parts.activation](graph, gate, 1.0), up)
    return graph.linear(product, f"{at}.{parts.down}", inner, hidden, bias=parts.bias)


def _split(graph: GraphBuilder, x: ir.Value, count: int, width: int) -> list[ir.Value]:
    """x [B, S, count * width] -> `count` of [B, S, width]."""
    sizes = graph.constant([width] * count)
    return list(graph.ops("Split", x, sizes, outputs=count, axis=-1))
