"""Half-precision graphs over the weights that the CPU's graphs store.

Owns how a linear layer is said in 16-bit floats, from whatever the grade stored: floats are
narrowed, rows of integers are widened, and blocks of integers are multiplied as they are. What
depends on weights alone is computed once, by the compiler on the node, so a bundle is hardly
larger for serving graphics processors too.
"""

from __future__ import annotations

import onnx_ir as ir

from installer.checkpoint.graph.builder import (
    MICROSOFT,
    GraphBuilder,
    IntegerMatrix,
    Matrix,
)
from installer.checkpoint.weights import alias


class HalfBuilder(GraphBuilder):
    """A graph whose activations are 16-bit floats."""

    dtype = ir.DataType.FLOAT16

    def gather(self, matrix: IntegerMatrix, ids: ir.Value) -> ir.Value:
        """ids [...] -> rows of the matrix [..., inner]."""
        return self.op("Gather", self.widened(matrix), ids)

    def linear(
        self,
        x: ir.Value,
        name: str,
        inner: int,
        outer: int,
        *,
        bias: bool = False,
        scale: ir.Value | None = None,
    ) -> ir.Value:
        """x [..., inner] -> [..., outer] by the checkpoint's `name`.weight [outer, inner]."""
        if not self.scheme.integer_products:
            return super().linear(x, name, inner, outer, bias=bias, scale=scale)
        assert scale is None, "nothing is left to be multiplied with"
        addend = self.vector(f"{name}.bias", outer) if bias else None
        rows = self.tensors.rows(self._weight(name, inner, outer))
        return self._plus(self._product(x, self.integers(name, (outer, inner), rows)), addend)

    def unscaled(
        self, x: ir.Value, name: str, inner: int, outer: int
    ) -> tuple[ir.Value, ir.Value | None]:
        """As `linear`; nothing is left to be multiplied with."""
        return self.linear(x, name, inner, outer), None

    def multiply(self, x: ir.Value, matrix: Matrix, bias: ir.Value | None = None) -> ir.Value:
        """x [..., inner] -> [..., outer]."""
        if isinstance(matrix, IntegerMatrix):
            assert bias is None
            return self.op("Gemm", x, self.widened(matrix), transB=1)
        product = self.op(
            "MatMulNBits",
            *(x, matrix.packed, self.parameter(matrix.scales), matrix.zeros),
            domain=MICROSOFT,
            K=matrix.inner,
            N=matrix.outer,
            bits=matrix.bits,
            block_size=matrix.block,
        )
        return self._plus(product, bias)

    def _product(self, x: ir.Value, matrix: IntegerMatrix) -> ir.Value:
        """x [..., inner] -> [..., outer]."""
        columns = self.op("Transpose", self.widened(matrix), perm=[1, 0])
        return self.op("MatMul", x, columns)

    def widened(self, matrix: IntegerMatrix) -> ir.Value:
        """The rows that the integers stand for, [outer, inner]."""
        name = matrix.integers.name
        assert name is not None
        if name not in self._converted:
            scales = alias(matrix.scales, f"{matrix.scales.name}.flat", (matrix.outer,))
            # Multiplied in 32 bits: many scales are too small for 16.
            rows = self.op("DequantizeLinear", matrix.integers, scales, axis=0)
            self._converted[name] = self.op("Cast", rows, to=self.dtype)
        return self._converted[name]

    def _plus(self, y: ir.Value, addend: ir.Value | None) -> ir.Value:
        return y if addend is None else self.op("Add", y, addend)
