"""What blocks of 8-bit integers stand for, as floats: for graphs whose products are many rows wide.

The compiler on the node computes it once, since it depends on weights alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.storage import Matrix, QuantizedMatrix
from installer.checkpoint.weights import alias

_MIDDLE = 128


class BlocksAsFloats(GraphBuilder):
    """A graph that can say what its blocks of integers stand for."""

    def floats_of(self, matrix: QuantizedMatrix) -> ir.Value:
        """The rows that the integers stand for, in 32 bits, [outer, inner]."""
        assert matrix.bits == 8, "what reads whole is built at 8 bits"
        name = matrix.packed.name
        assert name is not None
        scales, zeros, outer = matrix.scales, matrix.zeros, matrix.outer
        runs = -(-matrix.inner // matrix.block)
        integers = alias(matrix.packed, f"{name}.rows", (outer, runs * matrix.block))
        if zeros is None:
            zeros = self._middles(outer, runs)
        rows = self.op("DequantizeLinear", integers, scales, zeros, axis=1, block_size=matrix.block)
        if runs * matrix.block == matrix.inner:
            return rows
        ends = (self.constant([end]) for end in (0, matrix.inner, 1))
        return self.op("Slice", rows, *ends)

    def _middles(self, outer: int, runs: int) -> ir.Value:
        """The zero point of blocks that have none of their own, for each, uint8 [outer, runs]."""
        middle = self._scalar("const.middle", np.uint8(_MIDDLE))
        return self.op("Expand", middle, self.constant([outer, runs]))


class FloatBuilder(BlocksAsFloats):
    """A graph of 32-bit floats alone, whatever is stored: what a vision tower computes on a GPU.

    16 bits would not do: numbers between a tower's layers outgrow them.
    """

    def multiply(self, x: ir.Value, matrix: Matrix, bias: ir.Value | None = None) -> ir.Value:
        """x [..., inner] -> [..., outer]."""
        if not isinstance(matrix, QuantizedMatrix):
            return super().multiply(x, matrix, bias)
        columns = self.op("Transpose", self.floats_of(matrix), perm=[1, 0])
        product = self.op("MatMul", x, columns)
        return product if bias is None else self.op("Add", product, bias)
