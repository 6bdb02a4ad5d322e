"""Attention over a cache of floats.

`FloatSlots` is the only graph for the CPU of the grades with a float32 cache; `HalfSlots` is its
like for CUDA, of every grade. With 8 bits: byte_slots.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from installer.checkpoint.graph import selection
from installer.checkpoint.graph.angles import Tables, angles
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.cached import Cached, choose_rows, declare_rows
from installer.checkpoint.graph.decoder import Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.indexed import Place


class FloatSlots(Cached):
    """Float slots, extended in place; prompts and decoding in one graph."""

    def __init__(self, graph: GraphBuilder, shape: DecoderShape) -> None:
        super().__init__(graph, shape)
        self._rows = declare_rows(graph)
        self._tables = self._make_tables()

    def _make_tables(self) -> Sequence[Tables]:
        """The tables of each layer, stored with the weights."""
        return angles(self._graph, self._shape)

    def attend(self, layer: int, heads: Heads, bias: ir.Value | None = None) -> ir.Value:
        return self._extended(layer, heads, bias)[0]

    def known(self, layer: int) -> Sequence[ir.Value]:
        """A layer's slots of keys and of values before these tokens."""
        return self._past(layer, self._graph.dtype)

    def keep(self, layer: int, heads: Heads) -> Sequence[ir.Value]:
        """The same with what is new, for a layer that reads them in its own way."""
        return self._extended(layer, heads)[1:]

    def _extended(
        self, layer: int, heads: Heads, bias: ir.Value | None = None
    ) -> Sequence[ir.Value]:
        """What heads read, and the slots with what is new."""
        heads = self._placed(layer, heads)
        past = self._past(layer, self._graph.dtype)
        lengths = (self._seqlens, self._total)
        attended, *present = self._kernel(
            layer, *heads, *past, *lengths, *self._tables[layer], rotate=True, bias=bias
        )
        self._present(layer, present, self._graph.dtype)
        return attended, *present

    def cached(self, layer: int, place: Place, fresh: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What the cache holds at `place`, and `fresh` as it is."""
        return self._piece(layer, place, self._graph.dtype), fresh

    def choose(self, x: ir.Value) -> ir.Value:
        return choose_rows(self._graph, self._shape, x, self._rows)


class HalfSlots(FloatSlots):
    """Slots of 16-bit floats, for the CUDA provider; selects the likeliest token in the graph."""

    def conclude(self, scores: ir.Value) -> None:
        logits = self._graph.op("Cast", scores, to=ir.DataType.FLOAT)
        super().conclude(logits)
        best = selection.greedy(self._graph, logits)
        self._graph.output(best, "greedy", ("rows",), ir.DataType.INT64)
