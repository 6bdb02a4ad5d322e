"""How the states of a text's tokens become one vector, and what of it callers may ask for.

Owns the `embeddings` output of encoder graphs, of whatever family, and the manifest's words for
them. Dense layers behind the pooling are in 32 bits in every grade: they see one row of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec
import onnx_ir as ir

from appliance.bundle.specs import EncoderSpec
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.operators import MICROSOFT
from installer.checkpoint.graph.sentence import Activation, Dense, Pooling, Sentence
from installer.checkpoint.settings import Settings

MATRYOSHKA = frozenset({"matryoshka_dimensions", "is_matryoshka"})
"""Keys of config.json that say which shorter vectors there are."""


class Transformer(Protocol):
    """What makes states of tokens, as far as the manifest speaks of it.

    Attributes:
        longest: tokens of a text that it has positions for.
        token_bytes: of a GPU's memory, while a token is computed.
    """

    @property
    def vocab(self) -> int: ...

    @property
    def hidden(self) -> int: ...

    @property
    def longest(self) -> int: ...

    @property
    def token_bytes(self) -> int: ...


Body = TypeVar("Body", bound=Transformer)


@dataclass(frozen=True, slots=True)
class EncoderShape(Generic[Body]):
    """A transformer and what makes one vector of its states."""

    body: Body
    sentence: Sentence
    min_dimensions: int | None

    @property
    def vocab(self) -> int:
        return self.body.vocab

    def spec(self) -> EncoderSpec:
        body = self.body
        return spec(
            *(self.sentence, body.hidden, body.longest, self.min_dimensions),
            vocab=body.vocab,
            token_bytes=body.token_bytes,
        )


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
        dimensions=width(sentence, hidden),
        max_length=min(longest, sentence.max_length or longest),
        pooling=sentence.pooling,
        normalize=sentence.normalize,
        min_dimensions=msgspec.UNSET if fewest is None else fewest,
        vocab_size=vocab,
        token_bytes=token_bytes,
    )


def width(sentence: Sentence, hidden: int) -> int:
    """Numbers of a vector that is made of states of `hidden` numbers."""
    return sentence.dense[-1].outer if sentence.dense else hidden


def read_min_dimensions(config: Settings, dimensions: int) -> int | None:
    """To how few numbers a vector may be cut: `matryoshka_dimensions`, if the publisher says so.

    None if the whole vector is needed. Raises CheckpointError.
    """
    listed = config.ids("matryoshka_dimensions")
    if not config.flag("is_matryoshka", bool(listed)):
        return None
    return max(1, min(dimensions, *listed)) if listed else 1


def pool(graph: GraphBuilder, x: ir.Value, mask: ir.Value, pooling: Pooling) -> ir.Value:
    """x [B, S, hidden] -> [B, hidden]; the last token is for the graph's form to choose."""
    assert pooling != "last"
    return mean(graph, x, mask) if pooling == "mean" else first_row(graph, x)


def first_row(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    """The first token's row, which BERT calls CLS; x [B, S, hidden] -> [B, hidden]."""
    first = graph.op("Gather", x, graph.constant([0]), axis=1)
    return graph.op("Squeeze", first, graph.constant([1]))


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
    vectors = graph.full(pooled)
    for layer in sentence.dense:
        vectors = _dense(graph, layer, vectors)
    dimensions = width(sentence, hidden)
    if sentence.normalize:
        vectors = graph.unit(vectors, dimensions)
    graph.output(vectors, "embeddings", ("batch", dimensions))


def _dense(graph: GraphBuilder, layer: Dense, x: ir.Value) -> ir.Value:
    """x [B, inner] -> [B, outer]."""
    weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
    graph.tensors.expect(weight, (layer.outer, layer.inner))
    size = (layer.inner, layer.outer)
    x = graph.op(
        "MatMul", x, graph.floats(f"{weight}.transposed", size, graph.tensors.transposed(weight))
    )
    if layer.bias:
        shift = graph.floats(bias, (layer.outer,), [graph.tensors.vector(bias, layer.outer)])
        x = graph.op("Add", x, shift)
    return _ACTIVATIONS[layer.activation](graph, x)


_ACTIVATIONS: Mapping[Activation, Callable[[GraphBuilder, ir.Value], ir.Value]] = {
    "Identity": lambda _, x: x,
    "Tanh": lambda graph, x: graph.op("Tanh", x),
    "Sigmoid": lambda graph, x: graph.op("Sigmoid", x),
    "ReLU": lambda graph, x: graph.op("Max", x, graph.constant([0.0])),
    "GELU": lambda graph, x: graph.op("Gelu", x, domain=MICROSOFT),
}
