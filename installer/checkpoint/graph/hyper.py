"""Manifold-constrained hyper-connections: several residual streams, which each block reads as one.

Owns their words in a graph. In front of a block, numbers made of all streams say how they are
collapsed into what it reads (`pre`), how its result is handed to each (`post`), and how they are
mixed meanwhile: by a matrix that a few rounds of Sinkhorn and Knopp's make nearly doubly
stochastic, so that no layer lets them grow. All of it is in 32 bits in every grade. Xie et al.,
mHC (2026), as DeepSeek-V4 (2026), 2.2, has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.quantize import Float32


class Names(NamedTuple):
    """Tensors of one place: a matrix, what is added to its products, and their factors."""

    matrix: str
    base: str
    scale: str


class Opened(NamedTuple):
    """What a block reads, [B, S, hidden]; what each stream takes of its result, [B, S, N, 1]; and
    what of the other streams, [B, S, N, N]."""

    read: ir.Value
    post: ir.Value
    mixing: ir.Value


@dataclass(frozen=True, slots=True)
class HyperConnections:
    """Attributes:
    streams: how many there are, N.
    rounds: of making rows and columns add up to one.
    epsilon: what sums are kept from zero by.
    norm_epsilon: of the norm over all streams.
    hidden: numbers of one stream.
    """

    streams: int
    rounds: int
    epsilon: float
    norm_epsilon: float
    hidden: int

    def spread(self, graph: GraphBuilder, x: ir.Value) -> ir.Value:
        """x [B, S, hidden] -> as every stream, [B, S, N, hidden]."""
        apart = graph.op("Unsqueeze", x, graph.constant([2]))
        return graph.op("Expand", apart, graph.constant([1, 1, self.streams, 1]))

    def open(self, graph: GraphBuilder, streams: ir.Value, names: Names) -> Opened:
        """Collapse streams [B, S, N, hidden] for a block."""
        count, square = self.streams, self.streams**2
        made = self._made(graph, streams, names, (count, count, square))
        pre, post, mixing = graph.ops(
            "Split", made, graph.constant([count, count, square]), outputs=3, axis=-1
        )
        post = graph.op("Mul", graph.op("Sigmoid", post), graph.constant([2.0]))
        return Opened(
            self._collapsed(graph, streams, pre),
            graph.op("Unsqueeze", post, graph.constant([3])),
            self._balanced(graph, mixing),
        )

    def close(
        self, graph: GraphBuilder, streams: ir.Value, opened: Opened, result: ir.Value
    ) -> ir.Value:
        """The streams behind a block whose result is [B, S, hidden]."""
        handed = graph.op("Mul", opened.post, graph.op("Unsqueeze", result, graph.constant([2])))
        turned = graph.op("Transpose", opened.mixing, perm=[0, 1, 3, 2])
        return graph.op("Add", handed, graph.op("MatMul", turned, streams))

    def collapse(self, graph: GraphBuilder, streams: ir.Value, names: Names) -> ir.Value:
        """What stands behind the last layer: streams [B, S, N, hidden] -> [B, S, hidden]."""
        return self._collapsed(graph, streams, self._made(graph, streams, names, (self.streams,)))

    def _made(
        self, graph: GraphBuilder, streams: ir.Value, names: Names, parts: tuple[int, ...]
    ) -> ir.Value:
        """What a place makes of all streams, [B, S, sum of parts], each of which has a factor."""
        width, total = self.streams * self.hidden, sum(parts)
        graph.tensors.expect(names.matrix, (total, width))
        columns = graph.floats(
            f"{names.matrix}.transposed", (width, total), graph.tensors.transposed(names.matrix)
        )
        flat = graph.op("Reshape", streams, graph.constant([0, 0, width]))
        flat = graph.norm_plainly(flat, width, self.norm_epsilon)
        factors = np.repeat(graph.tensors.vector(names.scale, len(parts)), parts)
        products = graph.op("MatMul", flat, columns)
        scaled = graph.op("Mul", products, graph.floats(names.scale, (total,), [factors]))
        base = graph.tensors.vector(names.base, total)
        return graph.op("Add", scaled, graph.floats(names.base, (total,), [base]))

    def _collapsed(self, graph: GraphBuilder, streams: ir.Value, pre: ir.Value) -> ir.Value:
        weights = graph.op("Add", graph.op("Sigmoid", pre), graph.constant([self.epsilon]))
        weights = graph.op("Unsqueeze", weights, graph.constant([2]))
        return graph.op("Squeeze", graph.op("MatMul", weights, streams), graph.constant([2]))

    def _balanced(self, graph: GraphBuilder, mixing: ir.Value) -> ir.Value:
        """Logits [B, S, N * N] -> matrices [B, S, N, N] whose rows and columns add up to one.

        A product with ones and zeros gives each number the sum of its row or column at once.
        """
        count, least = self.streams, graph.constant([self.epsilon])
        apart = graph.op("Reshape", mixing, graph.constant([-1, count, count]))
        shares = graph.op("Add", graph.op("Softmax", apart, axis=-1), least)
        flat = graph.op("Reshape", shares, graph.constant([-1, count**2]))
        rows, columns = (
            graph.array(f"const.{name}-{count}", ones)
            for name, ones in zip(("rows", "columns"), _ones(count), strict=True)
        )
        for sums in (columns, *(rows, columns) * (self.rounds - 1)):
            flat = graph.op("Div", flat, graph.op("Gemm", flat, sums, least))
        sizes = graph.op("Shape", mixing, start=0, end=2)
        sizes = graph.op("Concat", sizes, graph.constant([count, count]), axis=0)
        return graph.op("Reshape", flat, sizes)


def _ones(count: int) -> tuple[Float32, Float32]:
    """[N * N, N * N]: where two numbers of a matrix share a row, and where a column."""
    same, each = np.eye(count, dtype=np.float32), np.ones((count, count), np.float32)
    return np.kron(same, each), np.kron(each, same)
