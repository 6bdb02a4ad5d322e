"""Builds one ONNX graph over onnx-ir while its weights stream into the bundle's files (storage.py).

Owns how each precision expresses a linear layer: MatMul, of floats or of what 8-bit floats stand
for, MatMulNBits with 8-bit activations, or a product of integers (tables: table.py). Knows nothing
of any architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.activations import ACTIVATIONS, Activation
from installer.checkpoint.graph.operators import MICROSOFT
from installer.checkpoint.graph.storage import (
    FloatMatrix,
    IntegerMatrix,
    Matrix,
    QuantizedMatrix,
)
from installer.checkpoint.graph.stream import Stream
from installer.checkpoint.quantize import FLOAT_BITS, Scheme
from installer.checkpoint.tensors import Tensors
from installer.checkpoint.weights import WeightFiles, alias

INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level: without it the kernel is several times slower."""
_SMALLEST_PEAK = 1e-10
"""A row of zeros is divided by this, not by zero."""


class GraphBuilder(Stream):
    """One graph in the making, with all words that a model family is written in."""

    def __init__(self, tensors: Tensors, files: WeightFiles, scheme: Scheme) -> None:
        super().__init__(tensors, files, scheme)
        self._rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def gather(self, matrix: IntegerMatrix, ids: ir.Value) -> ir.Value:
        """ids [...] -> rows of the matrix [..., inner]."""
        rows = self.op("Cast", self.op("Gather", matrix.integers, ids), to=ir.DataType.FLOAT)
        return self.op("Mul", rows, self.op("Gather", matrix.scales, ids))

    def gather_blocks(self, matrix: QuantizedMatrix, ids: ir.Value) -> ir.Value:
        """ids [...] -> rows of the matrix [..., inner]."""
        # The same bytes as the product's, in the shape that the lookup wants.
        row_bytes = matrix.inner * matrix.bits // 8
        flat = alias(matrix.packed, f"{matrix.packed.name}.flat", (matrix.outer, row_bytes))
        return self.op(
            "GatherBlockQuantized",
            *(flat, ids, self.parameter(matrix.scales), matrix.zeros),
            domain=MICROSOFT,
            bits=matrix.bits,
            block_size=matrix.block,
            gather_axis=0,
            quantize_axis=1,
        )

    def padding(self, mask: ir.Value, head_dim: int | None) -> ir.Value:
        """What attention among all tokens of a text takes of the mask [B, S], 1 for tokens.

        `head_dim`: of the heads that attend; None where something is added to their products.
        """
        return self.op("Cast", mask, to=ir.DataType.INT32)

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
        """x [..., inner] -> [..., outer] by the checkpoint's `name`.weight [outer, inner].

        `scale` [..., 1] is what `unscaled` gave, if x was made from its result. Of an x that is
        `divided` by a number, the result is so with its bias.
        """
        addend = self.vector(f"{name}.bias", outer, divided=divided) if bias else None
        if self.scheme.integer_products:
            y, own = self.unscaled(x, name, inner, outer)
            assert own is not None
            y = self.op("Mul", y, own if scale is None else self.op("Mul", own, scale))
            return y if addend is None else self.op("Add", y, addend)
        assert scale is None, "only products of integers have factors"
        matrix = self.byte_floats(name, inner, outer) if self.scheme.byte_floats else None
        if matrix is not None:
            return self.multiply_floats(x, matrix, addend)
        if self.scheme.layer_bits in FLOAT_BITS or self.scheme.byte_floats:
            pieces = self.tensors.transposed(self._weight(name, inner, outer))
            columns = self.stored(f"{name}.transposed", (inner, outer), pieces)
            y = self.op("MatMul", x, self.parameter(columns))
            return y if addend is None else self.op("Add", y, addend)
        blocks, order = self.matrix_in_blocks(name, inner, outer)
        return self.multiply(self.ordered(x, order), blocks, addend)

    def linear_in_full(self, x: ir.Value, name: str, inner: int, outer: int) -> ir.Value:
        """`linear` by weights that no grade rounds, in 32 bits."""
        self.tensors.expect(f"{name}.weight", (outer, inner))
        pieces = self.tensors.transposed(f"{name}.weight")
        columns = self.floats(f"{name}.transposed", (inner, outer), pieces)
        return self.op("MatMul", self.full(x), columns)

    def unscaled(
        self, x: ir.Value, name: str, inner: int, outer: int
    ) -> tuple[ir.Value, ir.Value | None]:
        """As `linear`, but for a factor [..., 1] that is still to be multiplied with, or None.

        Where x goes through another linear layer before it is added to anything, one product
        with the factors of both is cheaper.
        """
        if not self.scheme.integer_products:
            return self.linear(x, name, inner, outer), None
        rows = self.tensors.rows(self._weight(name, inner, outer))
        return self._multiply_integers(x, self.integers(name, (outer, inner), rows))

    def linears(
        self, x: ir.Value, outer: Mapping[str, int], inner: int, *, bias: bool = False
    ) -> Sequence[ir.Value]:
        """`linear` of the same x by several: name -> its width."""
        return [self.linear(x, name, inner, width, bias=bias) for name, width in outer.items()]

    def gated(
        self,
        x: ir.Value,
        gate: str,
        up: str,
        inner: int,
        outer: int,
        activation: Activation,
        *,
        divided: float = 1.0,
    ) -> tuple[ir.Value, ir.Value | None]:
        """activation(x by `gate`) * (x by `up`), but for a factor as `unscaled` has it.

        Of an x that is `divided` by a number, the result is so by its square.
        """
        opened = ACTIVATIONS[activation](self, self.linear(x, gate, inner, outer), divided)
        product, scale = self.unscaled(x, up, inner, outer)
        return self.op("Mul", opened, product), scale

    def ordered(self, x: ir.Value, order: ir.Value | None) -> ir.Value:
        """x [..., inner] in the order that `matrix_in_blocks` gave."""
        return x if order is None else self.op("Gather", x, order, axis=-1)

    def multiply(self, x: ir.Value, matrix: Matrix, bias: ir.Value | None = None) -> ir.Value:
        """x [..., inner] -> [..., outer]."""
        if isinstance(matrix, IntegerMatrix):
            assert bias is None
            return self.op("Mul", *self._multiply_integers(x, matrix))
        return self.op(
            "MatMulNBits",
            *(x, matrix.packed, matrix.scales, matrix.zeros),
            *(() if bias is None else (None, bias)),
            domain=MICROSOFT,
            K=matrix.inner,
            N=matrix.outer,
            bits=matrix.bits,
            block_size=matrix.block,
            accuracy_level=INT8_ACTIVATIONS,
        )

    def multiply_floats(self, x: ir.Value, matrix: FloatMatrix, bias: ir.Value | None) -> ir.Value:
        """x [..., inner] -> [..., outer]."""
        columns = self.op("Transpose", self.meant(matrix), perm=[1, 0])
        y = self.op("MatMul", x, columns)
        return y if bias is None else self.op("Add", y, bias)

    def meant(self, matrix: FloatMatrix) -> ir.Value:
        """The rows that 8-bit floats stand for, [outer, inner], in the graph's precision.

        Said with one scale for each run, as one for each row of a matrix: so TensorRT reads it,
        too. The compiler computes it once.
        """
        name, runs = matrix.values.name, matrix.outer * (matrix.inner // matrix.run)
        assert name is not None
        if name not in self._converted:
            values = alias(matrix.values, f"{name}.runs", (runs, matrix.run))
            scales = alias(matrix.scales, f"{matrix.scales.name}.flat", (runs,))
            rows = self.op("DequantizeLinear", values, scales, axis=0)
            if self.dtype != ir.DataType.FLOAT:
                rows = self.op("Cast", rows, to=self.dtype)
            shape = self.constant([matrix.outer, matrix.inner])
            self._converted[name] = self.op("Reshape", rows, shape)
        return self._converted[name]

    def _multiply_integers(self, x: ir.Value, matrix: IntegerMatrix) -> tuple[ir.Value, ir.Value]:
        """The product but for a factor of each row, and that factor.

        Each row of x is rounded to 8 bits by its own peak, so no row depends on another.

        The transpose is folded by the compiler; here the matrix stays as the checkpoint has it.
        """
        rounded, peaks = self._round(x)
        columns = self.op("Transpose", matrix.integers, perm=[1, 0])
        columns.name = f"{matrix.integers.name}.columns"
        product = self.op(
            "MatMulIntegerToFloat",
            *(rounded, columns, self._scalar("const.step", np.float32(1 / 127))),
            alias(matrix.scales, f"{matrix.scales.name}.flat", (matrix.outer,)),
            self._scalar("const.middle", np.uint8(128)),
            domain=MICROSOFT,
        )
        return product, peaks

    def _round(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """x [..., n] -> integers 1..255 around 128, and the peaks [..., 1] that 127 stands for."""
        if x not in self._rounded:
            peaks = self.op("ReduceMax", self.op("Abs", x), self.constant([-1]), keepdims=1)
            peaks = self.op("Max", peaks, self.constant([_SMALLEST_PEAK]))
            stretched = self.op("Mul", x, self.op("Div", self.constant([127.0]), peaks))
            one, middle = self._scalar("const.one", np.float32(1)), np.uint8(128)
            rounded = self.op(
                "QuantizeLinear", stretched, one, self._scalar("const.middle", middle)
            )
            self._rounded[x] = rounded, peaks
        return self._rounded[x]

    def signed_bytes(self, x: ir.Value) -> ir.Value:
        """x rounded to whole numbers -128..127."""
        one, zero = self._scalar("const.one", np.float32(1)), np.int8(0)
        return self.op("QuantizeLinear", x, one, self._scalar("const.zero", zero))
