"""How the states of a text's tokens become one vector, and what of it callers may ask for.

Owns the `embeddings` output of encoder graphs, of whatever family, and the manifest's words for
them.
"""

from __future__ import annotations

import msgspec
import onnx_ir as ir

from appliance.bundle.specs import EncoderSpec
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.sentence import Sentence
from installer.checkpoint.settings import Settings


def spec(
    sentence: Sentence,
    hidden: int,
    longest: int,
    fewest: int | None,
    *,
    vocab: int,
    token_bytes: int,
) -> EncoderSpec:
    """The manifest's words; no text may have more than `longest` tokens."""
    return EncoderSpec(
        dimensions=hidden,
        max_length=min(longest, sentence.max_length or longest),
        pooling=sentence.pooling,
        normalize=sentence.normalize,
        min_dimensions=msgspec.UNSET if fewest is None else fewest,
        vocab_size=vocab,
        token_bytes=token_bytes,
    )


def read_min_dimensions(config: Settings, hidden: int) -> int | None:
    """To how few numbers a vector may be cut: `matryoshka_dimensions`, if the publisher says so.

    None if the whole vector is needed. Raises CheckpointError.
    """
    listed = config.ids("matryoshka_dimensions")
    if not config.flag("is_matryoshka", bool(listed)):
        return None
    return max(1, min(hidden, *listed)) if listed else 1


def mean(graph: GraphBuilder, x: ir.Value, mask: ir.Value) -> ir.Value:
    """Mean over the tokens that are not padding; x [B, S, hidden] -> [B, hidden]."""
    x = graph.full(x)
    weights = graph.op("Cast", mask, to=ir.DataType.FLOAT)
    weights = graph.op("Unsqueeze", weights, graph.constant([-1]))
    axis = graph.constant([1])
    total = graph.op("ReduceSum", graph.op("Mul", x, weights), axis, keepdims=0)
    count = graph.op("ReduceSum", weights, axis, keepdims=0)
    return graph.op("Div", total, graph.op("Max", count, graph.constant([1e-9])))


def conclude(graph: GraphBuilder, pooled: ir.Value, sentence: Sentence, hidden: int) -> None:
    """Make the output of pooled vectors [B, hidden]."""
    pooled = graph.full(pooled)
    if sentence.normalize:
        pooled = graph.unit(pooled, hidden)
    graph.output(pooled, "embeddings", ("batch", hidden))
