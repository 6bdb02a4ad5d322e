"""BERT and its like as encoders of whole texts: post-norm transformer, pooling, unit length.

Owns the encoder graph's inputs and outputs (docs/bundle-format.md) and the transformer that the
rerankers of bert_reranker.py share. RoBERTa and XLM-RoBERTa differ in where positions begin, MPNet
also in that its heads know how far tokens are apart (relative.py).
References: Devlin et al., BERT (2019); Conneau et al., XLM-R (2020); Song et al., MPNet (2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.graph import pooling, relative
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.half_reader import token_bytes
from installer.checkpoint.graph.operators import MICROSOFT
from installer.checkpoint.graph.pooling import EncoderShape
from installer.checkpoint.graph.sentence import read_sentence
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
CLASSES = {"bert": "Bert", "mpnet": "MPNet", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
"""`model_type` -> what the reference's classes begin with."""


@dataclass(frozen=True, slots=True)
class Names:
    """Of the parts of a layer's attention."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    output: str = "attention.output.dense"
    norm: str = "attention.output.LayerNorm"


_MPNET = Names(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    output="attention.attn.o",
    norm="attention.LayerNorm",
)


@dataclass(frozen=True, slots=True)
class BertShape:
    """The numbers of the transformer. Counts, but for `epsilon`.

    Attributes:
        prefix: what the tensors' names begin with.
        first: the row of the position table that belongs to a text's first token.
        types: of tokens; none is no table of them.
        relative: whether heads have a table of how far tokens are apart.
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
    names: Names = Names()
    relative: bool = False

    @property
    def longest(self) -> int:
        """Tokens of a text that have positions."""
        return self.positions - self.first

    @property
    def token_bytes(self) -> int:
        """As the manifest says it."""
        plain = token_bytes(self.hidden, self.inner, 3 * self.hidden)
        return plain + (relative.token_bytes(self.heads, self.longest) if self.relative else 0)


def read(checkpoint: Checkpoint) -> EncoderShape[BertShape]:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    config = checkpoint.settings("config.json")
    model = CLASSES[checkpoint.family]
    # MPNet's sentence encoders are published under the name of what they were made from.
    others = [[f"{model}ForMaskedLM"]] if checkpoint.family == "mpnet" else []
    config.expect("architectures", [f"{model}Model"], *others)
    bert = read_bert(checkpoint, config, prefix="")
    sentence = read_sentence(checkpoint, bert.hidden)
    if sentence.pooling == "last":
        raise CheckpointError("the pooling of the last token belongs to a decoder, not to BERT")
    fewest = pooling.read_min_dimensions(config, pooling.width(sentence, bert.hidden))
    config.finish(HARMLESS_KEYS)
    return EncoderShape(bert, sentence, fewest)


def read_bert(checkpoint: Checkpoint, config: Settings, *, prefix: str) -> BertShape:
    """Read the keys of the transformer itself; the caller finishes `config`."""
    config.expect("hidden_act", "gelu")
    config.expect("position_embedding_type", "absolute")
    config.expect("is_decoder", False)
    config.expect("add_cross_attention", False)
    begins_behind_padding = checkpoint.family != "bert"
    mpnet = checkpoint.family == "mpnet"
    if mpnet:
        config.expect("relative_attention_num_buckets", relative.BUCKETS)
        config.expect("pad_token_id", 1)  # the reference's own, whatever stands here
    return BertShape(
        prefix=prefix,
        vocab=config.integer("vocab_size"),
        hidden=config.integer("hidden_size"),
        layers=config.integer("num_hidden_layers"),
        heads=config.integer("num_attention_heads"),
        inner=config.integer("intermediate_size"),
        positions=config.integer("max_position_embeddings"),
        first=config.whole("pad_token_id", 1) + 1 if begins_behind_padding else 0,
        types=0 if mpnet else config.integer("type_vocab_size", 2),
        epsilon=config.number("layer_norm_eps", 1e-12),
        names=_MPNET if mpnet else Names(),
        relative=mpnet,
    )


def build(graph: GraphBuilder, shape: EncoderShape[BertShape]) -> None:
    """Write the graph."""
    bert = shape.body
    ids, mask = declare_texts(graph)
    x = transform(graph, bert, ids, mask)
    pooled = pooling.pool(graph, x, mask, shape.sentence.pooling)
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
    names, hidden = shape.names, shape.hidden
    masks = _masks(graph, shape, ids, mask)
    x = _embed(graph, shape, ids, types)
    for layer in range(shape.layers):
        at = f"{shape.prefix}encoder.layer.{layer}"
        attended = _attend(graph, shape, at, graph.operand(x), masks)
        result = graph.linear(attended, f"{at}.{names.output}", hidden, hidden, bias=True)
        x = _norm(graph, shape, f"{at}.{names.norm}", x, result)
        inner = graph.linear(
            graph.operand(x), f"{at}.intermediate.dense", shape.hidden, shape.inner, bias=True
        )
        inner = graph.op("Gelu", inner, domain=MICROSOFT)
        result = graph.linear(inner, f"{at}.output.dense", shape.inner, shape.hidden, bias=True)
        x = _norm(graph, shape, f"{at}.output.LayerNorm", x, result)
    return x


def _embed(
    graph: GraphBuilder, shape: BertShape, ids: ir.Value, types: ir.Value | None
) -> ir.Value:
    at = f"{shape.prefix}embeddings"
    words = Table(graph, f"{at}.word_embeddings.weight", shape.vocab, shape.hidden)
    tokens = graph.op("Shape", ids, start=1, end=2)
    folded = types is None
    table = graph.floats(
        "embeddings.positions",
        (shape.longest, shape.hidden),
        _positions(graph, shape, folded and shape.types > 0),
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


def _masks(
    graph: GraphBuilder, shape: BertShape, ids: ir.Value, mask: ir.Value
) -> Sequence[ir.Value]:
    """What attention takes beside queries, keys and values."""
    if not shape.relative:
        return (graph.padding(mask, shape.hidden // shape.heads),)
    table = f"{shape.prefix}encoder.relative_attention_bias.weight"
    added = relative.bias(graph, table, ids, shape.heads, shape.longest)
    return graph.padding(mask, None), added


def _attend(
    graph: GraphBuilder, shape: BertShape, at: str, x: ir.Value, masks: Sequence[ir.Value]
) -> ir.Value:
    names = shape.names
    heads = (
        graph.linear(x, f"{at}.{name}", shape.hidden, shape.hidden, bias=True)
        for name in (names.query, names.key, names.value)
    )
    return graph.op(
        "MultiHeadAttention",
        *(*heads, None, *masks),
        domain=MICROSOFT,
        num_heads=shape.heads,
        scale=(shape.hidden // shape.heads) ** -0.5,
    )


def _norm(
    graph: GraphBuilder, shape: BertShape, name: str, x: ir.Value, result: ir.Value | None
) -> ir.Value:
    """Layer norm of x + result."""
    return graph.layer_norm(x, name, shape.hidden, shape.epsilon, result)
