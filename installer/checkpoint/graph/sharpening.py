"""Queries that grow with their position, so that attention over long texts stays as sharp.

Owns what they are multiplied by, 1 + weight * log(1 + n) where `every` positions lie n times before
the token, or before the next one, and the operators that say it. Forms tell where their tokens
begin (attention.py and its like). Reference: the temperature by position of Llama 4 (2025), as
Ministral 3 has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.quantize import Float32

_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Sharpening:
    """Attributes:
    every: positions with one factor.
    weight: of the logarithm.
    ahead: how many positions further on a token is taken to lie.
    """

    every: int
    weight: float
    ahead: int = 0

    def factors(self, context: int) -> Iterator[Float32]:
        """Of positions 0.. as runs of rows, [context, 1] in all."""
        for first in range(0, context, _ROWS):
            at = np.arange(first, min(first + _ROWS, context))
            times = (at + self.ahead) // self.every
            grown = np.log(np.float32(1) + times.astype(np.float32))
            yield (np.float32(1) + np.float32(self.weight) * grown)[:, None]


class Sharpener:
    """Multiplies queries in one graph.

    Args:
        context: how many positions there can be.
        positions: makes those of the tokens, int64 [...], each below the context.
    """

    def __init__(
        self, graph: GraphBuilder, context: int, positions: Callable[[], ir.Value]
    ) -> None:
        self._graph = graph
        self._context = context
        self._positions = positions
        self._factors: dict[Sharpening, ir.Value] = {}

    def sharpen(self, queries: ir.Value, by: Sharpening | None) -> ir.Value:
        """queries [..., any] of the tokens."""
        if by is None:
            return queries
        if by not in self._factors:
            name = f"sharpening.{by.every}.{by.weight}"
            table = self._graph.floats(name, (self._context, 1), by.factors(self._context))
            table = self._graph.parameter(table)
            self._factors[by] = self._graph.op("Gather", table, self._positions(), axis=0)
        return self._graph.op("Mul", queries, self._factors[by])


def count(graph: GraphBuilder, ids: ir.Value, axis: int) -> ir.Value:
    """1, 2, ... along that axis of the tokens. Made of them and not of their shape, which this
    machine's memory has: steps on a GPU are recorded without it."""
    ones = graph.op("Add", graph.op("Mul", ids, graph.constant([0])), graph.constant([1]))
    return graph.op("CumSum", ones, graph.array(f"const.axis_{axis}", np.asarray(axis, np.int64)))


def positions_from(
    graph: GraphBuilder, counted: ir.Value, starts: ir.Value, context: int
) -> ir.Value:
    """Where tokens lie that are `counted` [B, S], in rows that begin at `starts`, int64 [B, 1].

    Of what only fills a row up, which may lie anywhere, a position that there is.
    """
    at = graph.op("Add", graph.op("Add", starts, counted), graph.constant([-1]))
    return graph.op("Min", at, graph.constant([context - 1]))


def positions_of_spans(graph: GraphBuilder, ids: ir.Value, spans: ir.Value) -> ir.Value:
    """Where the tokens ids [T] lie, which come from spans of sequences one behind the other.

    spans: int32 [sequences, 3], each a slot, where its tokens begin and how many there are.
    """
    spans = graph.op("Cast", spans, to=ir.DataType.INT64)
    starts, counts = (
        graph.op("Gather", spans, graph.array(f"const.column_{i}", np.asarray(i)), axis=1)
        for i in (1, 2)
    )
    ends = graph.op("CumSum", counts, graph.array("const.axis_0", np.asarray(0, np.int64)))
    at = count(graph, ids, 0)
    behind = graph.op(
        "Greater",
        graph.op("Unsqueeze", at, graph.constant([1])),
        graph.op("Unsqueeze", ends, graph.constant([0])),
    )
    behind = graph.op("Cast", behind, to=ir.DataType.INT64)
    sequence = graph.op("ReduceSum", behind, graph.constant([1]), keepdims=0)
    shifts = graph.op("Sub", graph.op("Add", starts, counts), ends)
    at = graph.op("Add", at, graph.op("Gather", shifts, sequence))
    return graph.op("Add", at, graph.constant([-1]))
