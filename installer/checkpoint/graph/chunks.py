"""Layers whose tokens see their own chunk of the text alone, said to kernels that know windows.

Owns what tells chunks apart. A window as wide as a chunk reaches into the chunk before at most, and
from there nothing may be read. So each head of queries and keys has a further number, positive
in every other chunk and negative in the rest: it adds as much to the product of two tokens of one
chunk as it takes from one of neighbours, and softmax leaves nothing of the latter. Kernels turn
whole units of numbers, so a head grows by one unit; what else is in it is zero.
Why so: docs/decisions/0292-llama-4-and-gemma-4.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.quantize import Float32

ROOM = 16
"""How many numbers a head grows by."""
_APART = 64.0
"""What is added to the products within a chunk, and taken from those with the one before."""


class Marker:
    """Marks the heads of one graph with their chunks.

    Args:
        positions: makes those of the tokens, int64 [B, S].
    """

    def __init__(
        self, graph: GraphBuilder, shape: DecoderShape, positions: Callable[[], ir.Value]
    ) -> None:
        self._graph = graph
        self._shape = shape
        self._positions = positions
        self._made: tuple[ir.Value, ir.Value] | None = None

    def mark(self, layer: int, heads: Heads) -> Heads:
        """Queries, keys and values of a layer, which have no room yet, with it."""
        shape, (queries, keys, values) = self._shape, heads
        if not shape.room:
            return heads
        marks, nothing = self._tails()
        tail = nothing if shape.kinds[layer].chunk is None else marks
        return (
            self._with_tail(queries, tail, shape.heads),
            self._with_tail(keys, tail, shape.kv_heads),
            self._with_tail(values, nothing, shape.kv_heads),
        )

    def _with_tail(self, x: ir.Value, tail: ir.Value, heads: int) -> ir.Value:
        """x [B, S, heads * own] and a tail [B, S, 1, room] of each -> [B, S, heads * head_dim]."""
        graph, shape = self._graph, self._shape
        apart = graph.op("Reshape", x, graph.constant([0, 0, heads, shape.head_dim - shape.room]))
        tails = graph.op("Expand", tail, graph.constant([1, 1, heads, 1]))
        whole = graph.op("Concat", apart, tails, axis=-1)
        return graph.op("Reshape", whole, graph.constant([0, 0, heads * shape.head_dim]))

    def _tails(self) -> tuple[ir.Value, ir.Value]:
        """The marks of the tokens, and zeros, [B, S, 1, room] each."""
        if self._made is None:
            graph, shape = self._graph, self._shape
            (size,) = {kind.chunk for kind in shape.kinds} - {None}
            assert size is not None
            table = graph.array("chunks", _marks(-(-shape.context // size), shape.scale))
            chunks = graph.op("Div", self._positions(), graph.constant([size]))
            marks = graph.op("Gather", graph.parameter(table), chunks, axis=0)
            marks = graph.op("Unsqueeze", marks, graph.constant([2]))
            zero = graph.parameter(graph.constant([0.0]))
            self._made = marks, graph.op("Mul", marks, zero)
        return self._made


def _marks(chunks: int, scale: float) -> Float32:
    """[chunks, room]: of the same in queries and keys, whose products are multiplied by `scale`."""
    marks = np.zeros((chunks, ROOM), np.float32)
    marks[::2, 0], marks[1::2, 0] = (_APART / scale) ** 0.5, -((_APART / scale) ** 0.5)
    return marks
