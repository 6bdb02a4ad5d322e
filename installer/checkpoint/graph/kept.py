"""What a layer keeps of each token beside or in place of plain keys and values.

Owns where named numbers stand in a layer's slots: one head each of keys and of values, read as one
row, whose front are the numbers that the kernel turns by the token's position. The kernel writes
them and attends to nothing; the layer reads what it wants of the slots itself. Slots, the prefix
cache and preemption so hold them without knowing of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Heads

_UNIT = 16


@runtime_checkable
class Keeping(Protocol):
    """A form of attention whose slots hold floats that a layer may read itself."""

    def known(self, layer: int) -> Sequence[ir.Value]:
        """A layer's slots of keys and of values before these tokens, [B, 1, capacity, head_dim]."""
        ...

    def keep(self, layer: int, heads: Heads) -> Sequence[ir.Value]:
        """The same with what is new."""
        ...

    def positions(self) -> ir.Value:
        """Of the tokens, int64 [B, S]."""
        ...

    def starts(self) -> ir.Value:
        """Where the rows' tokens begin, int64 [B, 1]."""
        ...

    def total(self) -> ir.Value:
        """Tokens of the longest row up to its last, int64 [1]."""
        ...

    def turn(
        self,
        layer: int,
        x: ir.Value,
        heads: int,
        width: int,
        *,
        interleaved: bool,
        positions: ir.Value | None = None,
    ) -> ir.Value:
        """x [B, S, heads * width] by the layer's angles, each token by its position, or as if it
        were at another of `positions` [B, S]."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """Attributes:
    fields: names of the numbers of a token, in their order, and how many there are of each.
    """

    fields: Sequence[tuple[str, int]]

    @property
    def head_dim(self) -> int:
        """Of the one key head, and of the one head of values."""
        return -(-self._width // (2 * _UNIT)) * _UNIT

    @property
    def _width(self) -> int:
        return sum(width for _, width in self.fields)

    def write(
        self, graph: GraphBuilder, form: Keeping, layer: int, made: Mapping[str, ir.Value]
    ) -> Sequence[ir.Value]:
        """The slots with these numbers of new tokens, [B, S, width] each, by their names."""
        parts = [made[name] for name, _ in self.fields]
        room = 2 * self.head_dim - self._width
        if room:
            sizes = graph.op("Shape", parts[0], start=0, end=2)
            sizes = graph.op("Concat", sizes, graph.constant([room]), axis=0)
            parts.append(graph.op("Expand", graph.constant([0.0]), sizes))
        row = graph.op("Concat", *parts, axis=-1)
        halves = graph.constant([self.head_dim] * 2)
        keys, values = graph.ops("Split", row, halves, outputs=2, axis=-1)
        # Nobody asks what the kernel reads: any queries will do.
        return form.keep(layer, (keys, keys, values))

    def read(
        self, graph: GraphBuilder, slots: Sequence[ir.Value], at: ir.Value, names: Sequence[str]
    ) -> Sequence[ir.Value]:
        """Of the tokens at positions `at` [B, n], which all are in the slots, the numbers called
        `names`, in the order of the fields: [B, n, width] each."""
        spans = self._spans(names)
        first = spans[0][0] // self.head_dim
        last = (spans[-1][1] - 1) // self.head_dim
        where = graph.op("Unsqueeze", at, graph.constant([1, 3]))
        rows = [
            graph.op("Squeeze", found, graph.constant([1]))
            for found in (
                graph.op("GatherND", slot, where, batch_dims=2) for slot in slots[first : last + 1]
            )
        ]
        row = rows[0] if len(rows) == 1 else graph.op("Concat", *rows, axis=-1)
        return self._cut(graph, row, first * self.head_dim, len(rows) * self.head_dim, spans)

    def _spans(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """From where to where each of the fields stands."""
        spans, at = {}, 0
        for name, width in self.fields:
            spans[name] = at, at + width
            at += width
        return [spans[name] for name in names]

    def _cut(
        self,
        graph: GraphBuilder,
        row: ir.Value,
        begin: int,
        width: int,
        spans: Sequence[tuple[int, int]],
    ) -> Sequence[ir.Value]:
        """The spans of a row that holds the numbers from `begin` on."""
        sizes, wanted, at = [], [], begin
        for first, last in spans:
            if first > at:
                sizes.append(first - at)
            wanted.append(len(sizes))
            sizes.append(last - first)
            at = last
        if at < begin + width:
            sizes.append(begin + width - at)
        if len(sizes) == 1:
            return [row]
        parts = graph.ops("Split", row, graph.constant(sizes), outputs=len(sizes), axis=-1)
        return [parts[index] for index in wanted]
