"""What a token says together with those right before it, from tables of hashed n-grams.

    tokens    this one, the one before, ..; behind the end of a text (eos) they are eos themselves
    number    of an n-gram: the tokens, each times a number of its place, by exclusive or
    rows      one of each head's table, by the remainder of the number
    signal    a value for all streams, gated by what each stream has, and what a convolution over
              the last few of them adds

Owns the hash, the tables and the layer around them. The tokens before are kept with the inputs of
the convolution, as what a running state remembers further: each as its number less that of eos, so
that a state of zeros is the beginning of a text. The numbers of the hash are the checkpoint's own.

Reference: `Qwen4ExpTextPLELayer` (2026).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.graph.activations import ACTIVATIONS
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.recurrent import Further, Remembering
from installer.checkpoint.graph.residual_streams import Streams
from installer.checkpoint.graph.table import Table
from installer.checkpoint.tensors import Tensors

EXACT = 1 << 24
"""Numbers below this are exact in 32-bit floats."""
_END = (1 << 31) - 1
_LEAST = 1e-6
"""Of what is under the root of a gate."""


@dataclass(frozen=True, slots=True)
class Ngrams:
    """Attributes:
    layers: which have such a signal.
    longest: tokens of the longest n-gram; there are all lengths from two on.
    heads: of each length.
    width: numbers of what all heads give.
    kernel: inputs that the convolution adds up, each `longest` tokens behind the next.
    eos: the token that ends a text.
    vocab: tokens that there are.
    shards: into how many a table may be cut.
    """

    layers: tuple[int, ...]
    longest: int
    heads: int
    width: int
    kernel: int
    eos: int
    vocab: int
    shards: int

    @property
    def tables(self) -> int:
        """Heads of all lengths."""
        return (self.longest - 1) * self.heads

    @property
    def head_width(self) -> int:
        """Numbers of a row of one head."""
        return self.width // self.tables

    @property
    def tail(self) -> int:
        """Tokens that the convolution looks back."""
        return (self.kernel - 1) * self.longest

    def further(self, streams: Streams) -> Further:
        """What these layers remember: inputs of the convolution, and behind each its token."""
        return Further(self.layers, self.tail, streams.width + 1)


class NgramSignal:
    """The signals of one graph."""

    def __init__(self, own: Ngrams, streams: Streams) -> None:
        self._own = own
        self._streams = streams

    def add(
        self,
        graph: GraphBuilder,
        attention: Remembering,
        layer: int,
        at: str,
        ids: ir.Value,
        x: ir.Value,
    ) -> ir.Value:
        """The streams x [B, S, width] with the signal of the tokens `ids` [B, S] in `layer`."""
        own, streams, at = self._own, self._streams, f"{at}.ple"
        sizes = (own.tail, streams.width + 1)
        before = attention.past("further", layer, sizes)
        if before is None:
            before = graph.array("nothing.further", np.zeros((1, *sizes), np.float32))
        tokens = graph.op("Sub", ids, graph.constant([own.eos]))
        found = self._look_up(graph, at, self._history(graph, before, tokens))
        value = self._gated(graph, at, found, x)
        normed = streams.norm(graph, value, f"{at}.norm_conv")
        kept = graph.op("Unsqueeze", graph.op("Cast", tokens, to=ir.DataType.FLOAT), _at(graph, -1))
        joined = graph.op("Concat", before, graph.op("Concat", normed, kept, axis=-1), axis=1)
        attention.present("further", layer, _slice(graph, joined, -own.tail, _END, 1), sizes)
        summed = ACTIVATIONS["silu"](graph, self._convolve(graph, at, joined), 1.0)
        return graph.add(x, graph.op("Add", value, summed))

    def _history(self, graph: GraphBuilder, before: ir.Value, tokens: ir.Value) -> list[ir.Value]:
        """This token, the one before, ..: [B, S] each, less eos."""
        context, tail = self._own.longest - 1, self._own.tail
        known = _slice(graph, before, tail - context, tail, 1)
        known = _slice(graph, known, self._streams.width, _END, 2)
        known = graph.op("Cast", graph.op("Squeeze", known, _at(graph, 2)), to=ir.DataType.INT64)
        joined = graph.op("Concat", known, tokens, axis=1)
        history = [tokens]
        for back in range(1, context + 1):
            shifted = _slice(graph, joined, context - back, -back, 1)
            if back > 1:  # nothing is seen behind the end of a text
                inside = graph.op("Cast", history[-1], to=ir.DataType.BOOL)
                shifted = graph.op("Where", inside, shifted, graph.constant([0]))
            history.append(shifted)
        return history

    def _look_up(self, graph: GraphBuilder, at: str, history: Sequence[ir.Value]) -> ir.Value:
        """What all heads have for the tokens, [B, S, width]."""
        own, at = self._own, f"{at}.ple_embedding"
        factors, sizes = _hash(graph.tensors, at, own)
        tables = _tables(graph, f"{at}.ngram_embedding", own, sizes)
        eos, number = graph.constant([own.eos]), None
        found = []
        for place, (token, factor) in enumerate(zip(history, factors, strict=True)):
            said = graph.op("Mul", graph.op("Add", token, eos), graph.constant([factor]))
            number = said if number is None else graph.op("BitwiseXor", number, said)
            for head in range(max(place - 1, 0) * own.heads, place * own.heads):
                row = graph.op("Mod", number, graph.constant([sizes[head]]))
                found.append(tables[head].lookup(row))
        return graph.op("Concat", *found, axis=-1)

    def _gated(self, graph: GraphBuilder, at: str, found: ir.Value, x: ir.Value) -> ir.Value:
        """The value of what was found, as far as each stream lets it in, [B, S, width]."""
        own, streams = self._own, self._streams
        keys = graph.linear(found, f"{at}.key_proj", own.width, streams.width)
        value = graph.linear(found, f"{at}.value_proj", own.width, streams.hidden)
        keys = streams.norm(graph, keys, f"{at}.norm_key")
        queries = streams.norm(graph, x, f"{at}.norm_query")
        products = streams.apart(graph, graph.op("Mul", keys, queries))
        gates = graph.op("ReduceSum", products, _at(graph, 3), keepdims=0)
        gates = graph.divide(gates, float(np.sqrt(streams.hidden)))
        size = graph.op("Max", graph.op("Abs", gates), graph.constant([_LEAST]))
        gates = graph.op("Mul", graph.op("Sqrt", size), graph.op("Sign", gates))
        return streams.spread(graph, value, graph.op("Sigmoid", gates))

    def _convolve(self, graph: GraphBuilder, at: str, joined: ir.Value) -> ir.Value:
        """joined [B, tail + S, width + 1] -> [B, S, width]."""
        own, width, name = self._own, self._streams.width, f"{at}.conv1d.weight"
        graph.tensors.expect(name, (width, 1, own.kernel))
        taps = graph.tensors.stored_floats(name)
        inputs = _slice(graph, joined, 0, width, 2)
        total = None
        for place in range(own.kernel):
            tap = np.ascontiguousarray(taps[:, 0, place])
            last = place == own.kernel - 1
            end = _END if last else place * own.longest - own.tail
            shifted = _slice(graph, inputs, place * own.longest, end, 1)
            product = graph.op("Mul", shifted, graph.floats(f"{name}.{place}", (width,), [tap]))
            total = product if total is None else graph.op("Add", total, product)
        assert total is not None
        return total


def _at(graph: GraphBuilder, axis: int) -> ir.Value:
    return graph.constant([axis])


def _slice(graph: GraphBuilder, x: ir.Value, start: int, stop: int, axis: int) -> ir.Value:
    return graph.op("Slice", x, *(graph.constant([number]) for number in (start, stop, axis)))


def _hash(tensors: Tensors, at: str, own: Ngrams) -> tuple[list[int], list[int]]:
    """What each token of an n-gram is multiplied by, and how many rows each head has.

    Raises CheckpointError if their products outgrow 64 bits, or the rows do not follow each other.
    """
    names = ("layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets")
    factors, sizes, firsts = (
        [int(n) for n in tensors.stored(f"{at}.{name}", "I64")] for name in names
    )
    rows = np.cumsum([0, *sizes])[:-1].tolist()
    counted = (len(factors), len(sizes)) == (own.longest, own.tables)
    fits = all(0 < factor < (1 << 63) // own.vocab for factor in factors)
    if not (counted and fits and firsts == rows and min(sizes) > 0):
        raise CheckpointError(
            f"{at} has numbers of a hash that do not belong to {own.tables} tables of n-grams",
            hint="the checkpoint's config.json belongs to another model",
        )
    return factors, sizes


def _tables(graph: GraphBuilder, at: str, own: Ngrams, sizes: Sequence[int]) -> list[Table]:
    """Those of all heads, which lie behind each other in one tensor or in its shards."""
    names = [f"{at}.shard_{number}.weight" for number in range(own.shards)]
    stored = [name for name in names if graph.tensors.holds(name)] or [f"{at}.weight"]
    pieces: list[list[str]] = [[] for _ in sizes]
    head, left = 0, sizes[0]
    for name in stored:
        rows, parts = graph.tensors.shape(name)[0], {}
        while rows:
            count = min(rows, left) if head < len(sizes) else rows
            part = f"{name}.of_head_{head}"
            parts[part] = count
            if head < len(sizes):
                pieces[head].append(part)
            rows, left = rows - count, left - count
            if not left:
                head += 1
                left = sizes[head] if head < len(sizes) else 0
        graph.tensors.divide(name, parts)
    return [
        Table(graph, f"{at}.head_{at_head}", count, own.head_width, looked_up=True, pieces=parts)
        for at_head, (count, parts) in enumerate(zip(sizes, pieces, strict=True))
    ]
