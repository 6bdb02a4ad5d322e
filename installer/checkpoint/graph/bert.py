"""BERT and its like as encoders of whole texts: post-norm transformer, pooling, unit length.

Owns the encoder graph's inputs and outputs (docs/bundle-format.md) and the transformer that the
rerankers of bert_reranker.py share. RoBERTa and XLM-RoBERTa differ in where positions begin.
References: Devlin et al., BERT (2019); Conneau et al., XLM-R (2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from appliance.bundle.specs import EncoderSpec
from appliance.errors import CheckpointError
from installer.checkpoint.graph import pooling
from installer.checkpoint.graph.builder import MICROSOFT, GraphBuilder
from installer.checkpoint.graph.half_reader import token_bytes
from installer.checkpoint.graph.sentence import Sentence, read_sentence
from installer.checkpoint.graph.table import Table
from installer.checkpoint.quantize import Float32
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

HARMLESS_KEYS = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype"),
        *("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout"),
        *("initializer_range", "gradient_checkpointing", "use_cache", "tie_word_embeddings"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path", "output_past"),
    }
)
CLASSES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
"""`model_type` -> what the reference's classes begin with."""


@dataclass(frozen=True, slots=True)
class BertShape:
    """The numbers of the transformer. Counts, but for `epsilon`.

    Attributes:
        prefix: what the tensors' names begin with.
        first: the row of the position table that belongs to a text's first token.
    """

    prefix: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    inner: int
    positions: int
    first: int
    types: int
    epsilon: float

    @property
    def longest(self) -> int:
        """Tokens of a text that have positions."""
        return self.positions - self.first

    @property
    def token_bytes(self) -> int:
        """As the manifest says it."""
        return token_bytes(self.hidden, self.inner, 3 * self.hidden)


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """A transformer and what makes one vector of its states."""

    bert: BertShape
    sentence: Sentence
    min_dimensions: int | None

    @property
    def vocab(self) -> int:
        return self.bert.vocab

    def spec(self) -> EncoderSpec:
        bert = self.bert
        return pooling.spec(
            *(self.sentence, bert.hidden, bert.longest, self.min_dimensions),
            vocab=bert.vocab,
            token_bytes=bert.token_bytes,
        )


def read(checkpoint: Checkpoint) -> EncoderShape:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", [f"{CLASSES[checkpoint.family]}Model"])
    bert = read_bert(checkpoint, config, prefix="")
    sentence = read_sentence(checkpoint, bert.hidden)
    if sentence.pooling == "last":
        raise CheckpointError("the pooling of the last token belongs to a decoder, not to BERT")
    fewest = pooling.read_min_dimensions(config, bert.hidden)
    config.finish(HARMLESS_KEYS)
    return EncoderShape(bert, sentence, fewest)


def read_bert(checkpoint: Checkpoint, config: Settings, *, prefix: str) -> BertShape:
    """Read the keys of the transformer itself; the caller finishes `config`."""
    config.expect("hidden_act", "gelu")
    config.expect("position_embedding_type", "absolute")
    config.expect("is_decoder", False)
    config.expect("add_cross_attention", False)
    begins_behind_padding = checkpoint.family != "bert"
    return BertShape(
        prefix=prefix,
        vocab=config.integer("vocab_size"),
        hidden=config.integer("hidden_size"),
        layers=config.integer("num_hidden_layers"),
        heads=config.integer("num_attention_heads"),
        inner=config.integer("intermediate_size"),
        positions=config.integer("max_position_embeddings"),
        first=config.whole("pad_token_id", 1) + 1 if begins_behind_padding else 0,
        types=config.integer("type_vocab_size", 2),
        epsilon=config.number("layer_norm_eps", 1e-12),
    )


def build(graph: GraphBuilder, shape: EncoderShape) -> None:
    """Write the graph."""
    bert = shape.bert
    ids, mask = declare_texts(graph)
    x = transform(graph, bert, ids, mask)
    pooled = (
        pooling.mean(graph, x, mask) if shape.sentence.pooling == "mean" else first_row(graph, x)
    )
    pooling.conclude(graph, pooled, shape.sentence, bert.hidden)


def declare_texts(graph: GraphBuilder) -> tuple[ir.Value, ir.Value]:
    """The inputs that every encoder graph has: token ids and attention mask, [B, S]."""
    ids = graph.input("input_ids", ir.DataType.INT64, ("batch", "tokens"))
    return ids, graph.input("attention_mask", ir.DataType.INT64, ("batch", "tokens"))


def transform(
    graph: GraphBuilder,
    shape: BertShape,
    ids: ir.Value,
    mask: ir.Value,
    types: ir.Value | None = None,
) -> ir.Value:
    """Token states [B, S, hidden]; without `types` every token is of the first type."""
    padding = graph.padding(mask, shape.hidden // shape.heads)
    x = _embed(graph, shape, ids, types)
    for layer in range(shape.layers):
        at = f"{shape.prefix}encoder.layer.{layer}"
        attended = _attend(graph, shape, f"{at}.attention.self", graph.operand(x), padding)
        result = graph.linear(
            attended, f"{at}.attention.output.dense", shape.hidden, shape.hidden, bias=True
        )
        x = _norm(graph, shape, f"{at}.attention.output.LayerNorm", x, result)
        inner = graph.linear(
            graph.operand(x), f"{at}.intermediate.dense", shape.hidden, shape.inner, bias=True
        )
        inner = graph.op("Gelu", inner, domain=MICROSOFT)
        result = graph.linear(inner, f"{at}.output.dense", shape.inner, shape.hidden, bias=True)
        x = _norm(graph, shape, f"{at}.output.LayerNorm", x, result)
    return x


def first_row(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    """The first token's row, which BERT calls CLS; x [B, S, hidden] -> [B, hidden]."""
    first = graph.op("Gather", x, graph.constant([0]), axis=1)
    return graph.op("Squeeze", first, graph.constant([1]))


def _embed(
    graph: GraphBuilder, shape: BertShape, ids: ir.Value, types: ir.Value | None
) -> ir.Value:
    at = f"{shape.prefix}embeddings"
    words = Table(graph, f"{at}.word_embeddings.weight", shape.vocab, shape.hidden)
    tokens = graph.op("Shape", ids, start=1, end=2)
    folded = types is None
    table = graph.floats(
        "embeddings.positions", (shape.longest, shape.hidden), _positions(graph, shape, folded)
    )
    positions = graph.op("Slice", table, graph.constant([0]), tokens, graph.constant([0]))
    embedded = graph.op("Add", graph.full(words.lookup(ids)), positions)
    if types is not None:
        name = f"{at}.token_type_embeddings.weight"
        graph.tensors.expect(name, (shape.types, shape.hidden))
        rows = graph.floats(name, (shape.types, shape.hidden), graph.tensors.rows(name))
        embedded = graph.op("Add", embedded, graph.op("Gather", rows, types))
    return _norm(graph, shape, f"{at}.LayerNorm", embedded, None)


def _positions(graph: GraphBuilder, shape: BertShape, folded: bool) -> Iterator[Float32]:
    """Embeddings of the positions that tokens have, from the first on.

    `folded`: plus the embedding of token type 0, where no token has another.
    """
    at = f"{shape.prefix}embeddings"
    types, table = f"{at}.token_type_embeddings.weight", f"{at}.position_embeddings.weight"
    graph.tensors.expect(table, (shape.positions, shape.hidden))
    if folded:
        graph.tensors.expect(types, (shape.types, shape.hidden))
    return _sums(graph, table, types if folded else None, shape.first)


def _sums(graph: GraphBuilder, table: str, types: str | None, skip: int) -> Iterator[Float32]:
    added = np.float32(0) if types is None else next(graph.tensors.rows(types))[0]
    for piece in graph.tensors.rows(table):
        rows, skip = piece[skip:], max(0, skip - len(piece))
        yield np.add(rows, added, dtype=np.float32)


def _attend(
    graph: GraphBuilder, shape: BertShape, at: str, x: ir.Value, padding: ir.Value
) -> ir.Value:
    heads = (
        graph.linear(x, f"{at}.{name}", shape.hidden, shape.hidden, bias=True)
        for name in ("query", "key", "value")
    )
    return graph.op(
        "MultiHeadAttention",
        *(*heads, None, padding),
        domain=MICROSOFT,
        num_heads=shape.heads,
        scale=(shape.hidden // shape.heads) ** -0.5,
    )


def _norm(
    graph: GraphBuilder, shape: BertShape, name: str, x: ir.Value, result: ir.Value | None
) -> ir.Value:
    """Layer norm of x + result."""
    return graph.layer_norm(x, name, shape.hidden, shape.epsilon, result)
