"""Windows of tokens that are compressed into one entry each.

Owns the running mean from which an entry is made: of each channel, over the tokens of a window, the
mean that is weighed by the exponentials of gates, and the logarithm of what they add up to. Each
token has both of its window up to itself, made of those of the token before: so a text can be cut
and continued behind any token, and the last one's of a window is the entry. With overlap, an entry
is also made of other channels of the window before it. DeepSeek-V4 (2026), 2.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.kept import Keeping


class Mean(NamedTuple):
    """Of tokens [B, n]: logarithms of the sums of weights, and weighed means, [B, n, width]."""

    sums: ir.Value
    means: ir.Value


class Windows:
    """Windows of `size` tokens in one graph, and where its tokens stand in them."""

    def __init__(self, graph: GraphBuilder, form: Keeping, size: int) -> None:
        self._graph = graph
        self._size = size
        self._window = graph.constant([size])
        positions, one, none = form.positions(), graph.constant([1]), graph.constant([0])
        firsts = graph.op("Mul", graph.op("Div", positions, self._window), self._window)
        self.firsts = firsts
        """Where the windows of the tokens begin, [B, S]."""
        self.places = graph.op("Sub", positions, firsts)
        """Of the tokens in their windows, [B, S]."""
        self._before = graph.op("Sub", form.starts(), one)
        """The position of what is known, -1 for nothing, [B, 1]."""
        closing = graph.op("Greater", self.places, graph.constant([size - 2]))
        self._closes = graph.op("Unsqueeze", closing, graph.constant([2]))
        opens = graph.op("Max", self.places, graph.op("Sub", one, positions))
        self._follows = graph.op("Unsqueeze", graph.op("Greater", one, opens), graph.constant([2]))
        """Whether a token opens a window that has another before it, [B, S, 1]."""
        self.known = graph.op("Max", self._before, none)
        """Where what is known stands, [B, 1]; anywhere for nothing."""
        self._shifts = list(self._make_shifts(positions))
        count = graph.op("Max", graph.op("Div", form.total(), self._window), one)
        entries = self._range(count)
        last = graph.op("ReduceMax", positions, one, keepdims=1)
        ends = graph.op("Mul", graph.op("Add", entries, one), self._window)
        self.ends = graph.op("Min", graph.op("Sub", ends, one), last)
        """Where the entries stand, [B, n]; of those that a row does not have yet, anywhere."""
        complete = graph.op("Div", graph.op("Add", positions, one), self._window)
        complete = graph.op("Unsqueeze", complete, graph.constant([2]))
        self.beyond = graph.op("Greater", graph.op("Add", entries, one), complete)
        """Whether an entry is not there yet for a token, [B, S, n]."""
        self.count = count
        """How many entries are read, n, [1]."""

    def run(self, known: Mean, fresh: Mean) -> Mean:
        """The means up to each token, of those of single tokens `fresh` [B, S, width] and of the
        `known` one [B, 1, width] before them; it stands in front."""
        graph = self._graph
        sums, means = (graph.op("Concat", *pair, axis=1) for pair in zip(known, fresh, strict=True))
        mean = Mean(sums, means)
        for index, joins in self._shifts:
            earlier = Mean(*(graph.op("Gather", part, index, axis=1) for part in mean))
            mean = self._together(earlier, mean, joins)
        return mean

    def carry(self, earlier: Mean, fresh: Mean) -> Mean:
        """`fresh` means [B, S, width], those that open a window together with what the token before
        has of other channels: `earlier` begins with the known one's."""
        sizes = self._graph.constant([0]), self._graph.constant([-1]), self._graph.constant([1])
        before = Mean(*(self._graph.op("Slice", part, *sizes) for part in earlier))
        return self._together(before, fresh, self._follows)

    def new(self, mean: Mean) -> Mean:
        """Without the known one in front."""
        ends = self._graph.constant([1]), self._graph.constant([1 << 60]), self._graph.constant([1])
        return Mean(*(self._graph.op("Slice", part, *ends) for part in mean))

    def weigh(self, gates: ir.Value, name: str, width: int) -> ir.Value:
        """Gates [B, S, width] with what the tensor `name` [size, width] adds by places."""
        graph = self._graph
        graph.tensors.expect(name, (self._size, width))
        biases = graph.floats(name, (self._size, width), graph.tensors.rows(name))
        return graph.op("Add", gates, graph.op("Gather", biases, self.places, axis=0))

    def closed(self, finished: ir.Value, running: ir.Value) -> ir.Value:
        """What is kept of tokens [B, S, width]: entries where they close a window."""
        return self._graph.op("Where", self._closes, finished, running)

    def _together(self, earlier: Mean, later: Mean, joins: ir.Value) -> Mean:
        """Of two means one, where it `joins` them; else the later, whatever the earlier is."""
        graph = self._graph
        longer = graph.op("Sub", earlier.sums, later.sums)
        longer = graph.op("Where", joins, longer, graph.constant([-1e30]))
        apart = graph.op("Sub", earlier.means, later.means)
        apart = graph.op("Where", joins, apart, graph.constant([0.0]))
        moved = graph.op("Mul", graph.op("Sigmoid", longer), apart)
        return Mean(
            graph.op("Add", later.sums, graph.op("Softplus", longer)),
            graph.op("Add", later.means, moved),
        )

    def _make_shifts(self, positions: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
        """For each power of two below the size: which element stands so many before each, [S + 1],
        and whether it is of the same window, [B, S + 1, 1]. Hillis and Steele (1986)."""
        graph = self._graph
        all_of = graph.op("Concat", self._before, positions, axis=1)
        # Counted so that -1 has a window of its own.
        windows = graph.op("Div", graph.op("Add", all_of, self._window), self._window)
        index = self._range(graph.op("Shape", all_of, start=1, end=2))
        by = 1
        while by < self._size:
            step = graph.constant([by])
            at = graph.op("Max", graph.op("Sub", index, step), graph.constant([0]))
            apart = graph.op("Sub", windows, graph.op("Gather", windows, at, axis=1))
            apart = graph.op("Max", apart, graph.op("Sub", step, index))
            joins = graph.op("Greater", graph.constant([1]), apart)
            yield at, graph.op("Unsqueeze", joins, graph.constant([2]))
            by *= 2

    def _range(self, count: ir.Value) -> ir.Value:
        """0, 1, ... `count` [1] of them."""
        return ranged(self._graph, count)


def ranged(graph: GraphBuilder, count: ir.Value) -> ir.Value:
    """0, 1, ... `count` [1] of them, int64."""
    return graph.op(
        "Range",
        graph.array("const.start", np.asarray(0, np.int64)),
        graph.op("Squeeze", count, graph.constant([0])),
        graph.array("const.next", np.asarray(1, np.int64)),
    )


def joined(graph: GraphBuilder, parts: Sequence[ir.Value]) -> ir.Value:
    """Along the last axis."""
    return parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=-1)
