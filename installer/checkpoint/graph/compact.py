"""Half-precision graphs that multiply 8-bit weights as they are.

Owns how the integers of grade `w8a8` become what MatMulNBits reads: the same integers counted from
0, not from -128, in runs that share their row's scale; and the product of 8-bit floats, which the
CUDA provider alone has. Half the memory of 16-bit floats, for graphics processors on which those do
not fit (docs/decisions/0168-two-precisions-for-cuda.md, 0266-eight-bit-floats.md).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.half import HalfBuilder
from installer.checkpoint.graph.operators import MICROSOFT
from installer.checkpoint.graph.storage import FloatMatrix, IntegerMatrix, Matrix
from installer.checkpoint.quantize import Scheme

_BLOCKS = (32, 16)
"""Runs of weights: CUDA's kernel for many rows of floats takes 32, in the runtime as published."""
_MIDDLE = 128


def has_compact_graph(scheme: Scheme) -> bool:
    """Whether the grade has rows of integers, or 8-bit floats; other grades' blocks are multiplied
    anyway."""
    return scheme.integer_products or scheme.byte_floats


class CompactBuilder(HalfBuilder):
    """A graph whose activations are 16-bit floats and whose weights have 8 bits."""

    def gather(self, matrix: IntegerMatrix, ids: ir.Value) -> ir.Value:
        """ids [...] -> rows of the matrix [..., inner], from the integers that are multiplied."""
        if _block(matrix) is None:
            return super().gather(matrix, ids)
        rows = self.op("Cast", self.op("Gather", self._flat(matrix), ids), to=ir.DataType.FLOAT)
        centred = self.op("Sub", rows, self.constant([float(_MIDDLE)]))
        scaled = self.op("Mul", centred, self.op("Gather", matrix.scales, ids))
        return self.op("Cast", scaled, to=self.dtype)

    def multiply(self, x: ir.Value, matrix: Matrix, bias: ir.Value | None = None) -> ir.Value:
        """x [..., inner] -> [..., outer]."""
        if isinstance(matrix, IntegerMatrix) and _block(matrix) is not None:
            return self._plus(self._product(x, matrix), bias)
        return super().multiply(x, matrix, bias)

    def multiply_floats(self, x: ir.Value, matrix: FloatMatrix, bias: ir.Value | None) -> ir.Value:
        """x [..., inner] -> [..., outer]."""
        return self.op(
            "MatMulBlockQuantizedFp8Weight",
            *(x, matrix.values, matrix.scales),
            *(() if bias is None else (None, bias)),
            domain=MICROSOFT,
            block_size=matrix.run,
        )

    def _product(self, x: ir.Value, matrix: IntegerMatrix) -> ir.Value:
        block = _block(matrix)
        if block is None:
            return super()._product(x, matrix)
        runs = matrix.inner // block
        shape = self.constant([matrix.outer, runs, block])
        packed = self.op("Reshape", self._flat(matrix), shape)
        scales = self.parameter(matrix.scales)
        repeated = self.op("Expand", scales, self.constant([matrix.outer, runs]))
        return self.op(
            "MatMulNBits",
            *(x, packed, repeated),
            domain=MICROSOFT,
            K=matrix.inner,
            N=matrix.outer,
            bits=8,
            block_size=block,
        )

    def _flat(self, matrix: IntegerMatrix) -> ir.Value:
        """The integers counted from 0, uint8 [outer, inner]."""
        name = f"{matrix.integers.name}.raised"
        if name not in self._converted:
            # The same bits; turning the highest over adds 128, and no float is made for it.
            bits = self.op("Cast", matrix.integers, to=ir.DataType.UINT8)
            highest = self._scalar("const.highest-bit", np.uint8(_MIDDLE))
            self._converted[name] = self.op("BitwiseXor", bits, highest)
        return self._converted[name]


def _block(matrix: IntegerMatrix) -> int | None:
    """The run that divides a row."""
    return next((block for block in _BLOCKS if matrix.inner % block == 0), None)
