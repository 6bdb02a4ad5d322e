"""The experts of one layer as the runtime's kernels want them: stacked, expert after expert.

Owns how a grade stores a stack: floats, blocks of integers that are rounded here, or the integers
that the checkpoint has. Stacks stream into the weight files a run of rows at a time. One too large
for a file is split by inner positions, so that each part has a piece of every expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.expert_weights import End, ExpertWeights
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.quantize import FLOAT_BITS, Blocks, Float32, block_size, quantize
from installer.checkpoint.weights import alias

_SMALLEST_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Span:
    """The inner positions from `first` to `last`."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class IntegerStack:
    """Integers, scales and zero points, [experts, rows, ...] each; zero points if there are any."""

    packed: ir.Value
    scales: ir.Value
    zeros: ir.Value | None


class Stacks:
    """The experts of one layer, stored under `name`.

    Attributes:
        block: how many weights in a row share a scale; None in grades of floats.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        weights: ExpertWeights,
        experts: int,
        hidden: int,
        inner: int,
        name: str,
    ) -> None:
        """Raises CheckpointError if the experts' shapes do not fit, or the grade's blocks them."""
        self._graph = graph
        self._weights = weights
        self._experts = experts
        self._hidden = hidden
        self._inner = inner
        self._name = name
        self._bits = graph.scheme.layer_bits
        for expert in range(experts):
            weights.expect(expert, hidden, inner)
        floats = self._bits in FLOAT_BITS
        self._grid = None if floats else weights.grid(self._bits)
        self.block = None if floats else self._choose_block()

    def parts(self) -> Iterator[Span]:
        """Equal parts, of whole blocks, whose stacks fit into a file."""
        position = 2 * self._experts * self._hidden * self._bits // 8
        count, units = 1, self._inner // (self.block or 1)
        while count < units and (
            units % count or self._inner // count * position > self._graph.files.limit
        ):
            count += 1
        width = self._inner // count
        return (Span(first, first + width) for first in range(0, self._inner, width))

    def floats(self, end: End, span: Span) -> ir.Value:
        """The stack in the graph's precision, [experts, rows, columns]."""
        shape = (self._experts, *self._shape(end, span))
        stored = self._graph.stored(self._called(end, span), shape, self._rows(end, span))
        return self._graph.parameter(stored)

    def integers(self, end: End, span: Span) -> IntegerStack:
        """The stack in blocks of integers, scales in the graph's precision."""
        assert self.block is not None
        graph, bits, experts, name = self._graph, self._bits, self._experts, self._called(end, span)
        rows, columns = self._shape(end, span)
        centred = self._grid is not None and self._grid.centred
        matrix = graph.in_blocks(
            name,
            (experts * rows, columns),
            self._blocks(end, span),
            bits,
            self.block,
            centred=centred,
        )
        runs = columns // self.block
        packed = alias(matrix.packed, f"{name}.stacked", (experts, rows, columns * bits // 8))
        scales = alias(matrix.scales, f"{name}.scales.stacked", (experts, rows, runs))
        zeros = matrix.zeros
        if zeros is not None:
            shape = (experts, rows, -(-runs * bits // 8))
            zeros = alias(zeros, f"{name}.zeros.stacked", shape)
        return IntegerStack(packed, graph.parameter(scales), zeros)

    def bias(self, end: End, span: Span, *, divided: float = 1.0) -> ir.Value | None:
        """Of gates and ups; of the results, which are added once, in the first part. `divided` by
        a number."""
        if end == "down" and span.first > 0:
            return None
        width = 2 * (span.last - span.first) if end == "gate_up" else self._hidden
        pieces = self._weights.bias(end, span.first, span.last)
        name = f"{self._called(end, span)}.bias"
        stored = self._graph.floats(name, (self._experts, width), pieces)
        return self._graph.parameter(stored, divided=divided)

    def _choose_block(self) -> int:
        if self._grid is not None:
            return self._grid.block
        return block_of_both(self._hidden, self._inner)

    def _shape(self, end: End, span: Span) -> tuple[int, int]:
        """Rows and columns of one expert."""
        width = span.last - span.first
        return (2 * width, self._hidden) if end == "gate_up" else (self._hidden, width)

    def _called(self, end: End, span: Span) -> str:
        whole = span.last - span.first == self._inner
        return f"{self._name}.{end}" if whole else f"{self._name}.{end}.{span.first}"

    def _rows(self, end: End, span: Span) -> Iterable[Float32]:
        for expert in range(self._experts):
            yield from self._weights.rows(end, expert, span.first, span.last)

    def _blocks(self, end: End, span: Span) -> Iterable[Blocks]:
        assert self.block is not None
        if self._grid is None:
            for rows in self._rows(end, span):
                yield quantize(rows, self._bits, self.block)
            return
        for expert in range(self._experts):
            yield from self._weights.integers(
                end, expert, span.first, span.last, self._bits, self._grid
            )


def block_of_both(hidden: int, inner: int) -> int:
    """Weights that share a scale: a size that divides the rows of both stacks, as the kernel wants.

    Raises CheckpointError if there is none.
    """
    block = block_size(hidden)
    while hidden % block or inner % block:
        block //= 2
    if block < _SMALLEST_BLOCK:
        raise CheckpointError(
            f"{inner} by {hidden} weights do not divide into blocks of {_SMALLEST_BLOCK}",
            hint="choose --precision fp16 or fp32",
        )
    return block
