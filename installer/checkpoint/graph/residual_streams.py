"""Several residual streams beside each other, of which every block reads a mixture.

    normed    each stream by an RMS norm, with a gain for each number of all streams
    mixed     the mean of the normed streams, each number of them weighed by a gate
    taken in  what a block gives, added to each stream times a number of the token's own

Owns the arithmetic between blocks; a block reads what is mixed as it is, without a norm of its own.
How much each stream takes in is computed in 32 bits in every grade. Refuses 16-bit graphs: sums of
several layers would outgrow them.

Reference: Zhu et al., Hyper-Connections (2024); `Qwen4ExpTextGatedResidual`.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from installer.checkpoint.graph.activations import ACTIVATIONS
from installer.checkpoint.graph.builder import GraphBuilder


@dataclass(frozen=True, slots=True)
class Streams:
    """Attributes:
    count: how many there are.
    hidden: numbers of each.
    rank: of the layers that make the gates.
    epsilon: of the norms.
    """

    count: int
    hidden: int
    rank: int
    epsilon: float

    @property
    def width(self) -> int:
        """Numbers of all."""
        return self.count * self.hidden

    def begin(self, graph: GraphBuilder, x: ir.Value) -> ir.Value:
        """x [B, S, hidden] -> all streams [B, S, width], which are alike."""
        assert graph.dtype == ir.DataType.FLOAT
        return graph.op("Concat", *[x] * self.count, axis=-1)

    def norm(self, graph: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
        """x [B, S, width], each stream normed; the checkpoint's gains `name` count from one."""
        normed = graph.norm_heads_plainly(x, self.count, self.hidden, self.epsilon)
        return graph.op("Mul", normed, graph.vector(f"{name}.weight", self.width, 1.0))

    def mix(self, graph: GraphBuilder, at: str, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """x [B, S, width] -> what a block reads, [B, S, hidden]; the streams, normed."""
        normed = self.norm(graph, x, f"{at}.hc_norm")
        low = graph.linear(normed, f"{at}.input_mix_weight_down", self.width, self.rank)
        low = ACTIVATIONS["silu"](graph, graph.divide(low, self.count), 1.0)
        gates = graph.linear(low, f"{at}.input_mix_weight_up", self.rank, self.width)
        weighed = graph.op("Mul", graph.op("Sigmoid", gates), normed)
        total = graph.op("ReduceSum", self.apart(graph, weighed), graph.constant([2]), keepdims=0)
        return graph.divide(total, self.count), normed

    def take_in(
        self, graph: GraphBuilder, at: str, x: ir.Value, normed: ir.Value, result: ir.Value
    ) -> ir.Value:
        """The streams x, `normed` too, with a block's `result` [B, S, hidden] in each."""
        name = f"{at}.block_inject_weight"
        shares = graph.linear_in_full(normed, name, self.width, self.count)
        shares = graph.op("Sigmoid", graph.divide(shares, self.count))
        shares = graph.op("Mul", shares, graph.constant([2.0]))
        return graph.add(x, self.spread(graph, result, shares))

    def spread(self, graph: GraphBuilder, x: ir.Value, shares: ir.Value) -> ir.Value:
        """x [B, S, hidden] times each of `shares` [B, S, count], [B, S, width]."""
        each = graph.op("Unsqueeze", shares, graph.constant([-1]))
        product = graph.op("Mul", graph.op("Unsqueeze", x, graph.constant([2])), each)
        return graph.op("Reshape", product, graph.constant([0, 0, self.width]))

    def apart(self, graph: GraphBuilder, x: ir.Value) -> ir.Value:
        """x [B, S, width] -> [B, S, count, hidden]."""
        return graph.op("Reshape", x, graph.constant([0, 0, self.count, self.hidden]))
