"""Half-precision graphs over the weights that the CPU's graphs store.

Owns how a linear layer is said in 16-bit floats, from whatever the grade stored: floats are
narrowed, rows of integers and 8-bit floats are widened, and blocks of integers are multiplied as
they are. What depends on weights alone is computed once, by the compiler on the node, so a bundle
is hardly larger for serving graphics processors too. Owns also which numbers keep 32 bits: a stream
that is wide, and what is added to it.
"""

from __future__ import annotations

import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.operators import MICROSOFT
from installer.checkpoint.graph.storage import IntegerMatrix, Matrix
from installer.checkpoint.quantize import Scheme
from installer.checkpoint.tensors import Tensors
from installer.checkpoint.weights import WeightFiles, alias

_MOVES = frozenset({"Gather", "GatherND", "Reshape", "Squeeze"})
"""Operators that take numbers from one place to another."""


class HalfBuilder(GraphBuilder):
    """A graph whose activations are 16-bit floats."""

    dtype = ir.DataType.FLOAT16
    shrink = 16.0
    full_norms = False
    """Whether all norms are computed in 32 bits."""
    norm_operator = "SimplifiedLayerNormalization"

    def __init__(self, tensors: Tensors, files: WeightFiles, scheme: Scheme) -> None:
        super().__init__(tensors, files, scheme)
        self._in_full: set[ir.Value] = set()

    def residual(self, x: ir.Value, *, factor: float = 1.0, wide: bool = False) -> ir.Value:
        """x * factor as the stream that every block adds its result to."""
        if not wide:
            return super().residual(x, factor=factor)
        x = self.full(x)
        if factor != 1:
            x = self.made_full(self.op("Mul", x, self.constant([factor])))
        return x

    def norm(
        self,
        x: ir.Value,
        name: str,
        width: int,
        epsilon: float,
        offset: float = 0.0,
        *,
        wide: bool = False,
        divided: float = 1.0,
        centred: bool = False,
    ) -> ir.Value:
        """RMS norm over the last axis, in 32 bits if x or the result has so many."""
        if not (wide or self.full_norms or self._is_full(x)):
            return super().norm(x, name, width, epsilon, offset, divided=divided, centred=centred)
        gain = self._vector(name, width, offset)
        if divided != 1:
            gain = self.op("Mul", gain, self.constant([1 / divided]))
        x = self.full(x)
        if centred:
            normed = self.op("LayerNormalization", x, gain, axis=-1, epsilon=epsilon)
        else:
            normed = self.op(self.norm_operator, x, gain, axis=-1, epsilon=epsilon, stash_type=1)
        if not wide:
            return self.op("Cast", normed, to=self.dtype)
        return self.made_full(normed)

    def norm_sum(
        self,
        stream: ir.Value,
        result: ir.Value,
        name: str,
        width: int,
        epsilon: float,
        offset: float = 0.0,
        *,
        divided: float = 1.0,
        centred: bool = False,
    ) -> tuple[ir.Value, ir.Value]:
        """`norm` of stream + result; it and the sum."""
        gain = (name, width, epsilon, offset)
        if not self._is_full(stream):
            return super().norm_sum(stream, result, *gain, divided=divided, centred=centred)
        total = self.add(stream, result)
        return self.norm(total, *gain, divided=divided, centred=centred), total

    def add(self, stream: ir.Value, result: ir.Value) -> ir.Value:
        """stream + result, in the stream's precision."""
        if not self._is_full(stream):
            return super().add(stream, result)
        return self.made_full(self.op("Add", stream, self.full(result)))

    def _is_full(self, x: ir.Value) -> bool:
        """Whether x has 32 bits."""
        node = x.producer()
        if node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
            return self._is_full(node.inputs[0])
        return x in self._in_full

    def full(self, x: ir.Value) -> ir.Value:
        """x in 32 bits."""
        if self._is_full(x):
            return x
        return self.made_full(self.op("Cast", x, to=ir.DataType.FLOAT))

    def made_full(self, x: ir.Value) -> ir.Value:
        """x, which was made in 32 bits."""
        self._in_full.add(x)
        return x

    def operand(self, x: ir.Value) -> ir.Value:
        """x in 16 bits."""
        return self.op("Cast", x, to=self.dtype) if self._is_full(x) else x

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
        divided: float = 1.0,
    ) -> ir.Value:
        """x [..., inner] -> [..., outer] by the checkpoint's `name`.weight [outer, inner]."""
        if not self.scheme.integer_products:
            return super().linear(x, name, inner, outer, bias=bias, scale=scale, divided=divided)
        assert scale is None, "nothing is left to be multiplied with"
        addend = self.vector(f"{name}.bias", outer, divided=divided) if bias else None
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
