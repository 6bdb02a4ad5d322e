"""Builds one ONNX graph over onnx-ir while its weights stream into the bundle's files (storage.py).

Owns the words in which model families are written: an operator, a constant, a vector, a linear
layer (tables: table.py). Knows how each precision expresses a linear layer: MatMul, of floats or of
what 8-bit floats stand for, MatMulNBits with 8-bit activations, or a product of integers. Knows
nothing of any architecture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from installer.checkpoint.graph.storage import (
    FloatMatrix,
    IntegerMatrix,
    Matrix,
    QuantizedMatrix,
    Storage,
)
from installer.checkpoint.quantize import FLOAT_BITS, Scheme
from installer.checkpoint.tensors import Tensors
from installer.checkpoint.weights import WeightFiles, alias

MICROSOFT = "com.microsoft"
OPSETS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10
INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level: without it the kernel is several times slower."""
_SMALLEST_PEAK = 1e-10
"""A row of zeros is divided by this, not by zero."""

Dim = int | str
Attribute = int | float | str | Sequence[int]
Activation = Literal["silu", "gelu", "gelu_tanh"]


class GraphBuilder(Storage):
    """One graph in the making. The values it hands out are the graph's, not arrays.

    Attributes:
        dtype: of activations and of the key-value cache.
        opsets: the operator sets that its graphs are written in.
        shrink: what large numbers of a decoder are divided by (divisors.py).
    """

    dtype = ir.DataType.FLOAT
    shrink = 1.0
    opsets: Mapping[str, int] = OPSETS

    def __init__(self, tensors: Tensors, files: WeightFiles, scheme: Scheme) -> None:
        super().__init__(tensors, files, scheme)
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._constants: dict[str, ir.Value] = {}
        self._used: dict[str, ir.Value] = {}
        """Parameters and constants that an operator reads, in the order of first use."""
        self._made: Counter[str] = Counter()
        self._converted: dict[str, ir.Value] = {}
        """Name of a stored value -> it in the precision of the graph."""
        self._rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """Declare an input of the graph."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self._inputs.append(value)
        return value

    def output(
        self,
        value: ir.Value,
        name: str,
        shape: Sequence[Dim],
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> None:
        """Declare `value` an output of the graph."""
        value.name, value.shape = name, ir.Shape(shape)
        value.type = ir.TensorType(dtype)
        self._outputs.append(value)

    def op(
        self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Attribute
    ) -> ir.Value:
        """Append an operator with one output."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: ir.Value | None,
        outputs: int,
        domain: str = "",
        **attributes: Attribute,
    ) -> Sequence[ir.Value]:
        """Append an operator with several outputs."""
        name = f"{kind}_{self._made[kind]}"
        self._made[kind] += 1
        node = ir.node(
            kind,
            inputs,
            attributes=attributes,
            domain=domain,
            num_outputs=outputs,
            name=name,
        )
        for index, output in enumerate(node.outputs):
            output.name = name if outputs == 1 else f"{name}.{index}"
        self._nodes.append(node)
        for value in inputs:
            if value is not None and value.const_value is not None:
                assert value.name is not None
                self._used[value.name] = value
        return node.outputs

    def constant(self, values: Sequence[int] | Sequence[float]) -> ir.Value:
        """A short vector of int64 or float32, stored in the graph itself; equal ones are shared."""
        whole = all(isinstance(value, int) for value in values)
        name = "const." + "_".join(str(value) for value in values)
        return self.array(name, np.array(values, dtype=np.int64 if whole else np.float32))

    def array(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """A small array, stored in the graph itself; one name always means the same array."""
        if name not in self._constants:
            tensor = ir.tensor(array, name=name)
            self._constants[name] = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        return self._constants[name]

    def vector(
        self, name: str, width: int, offset: float = 0.0, *, divided: float = 1.0
    ) -> ir.Value:
        """The checkpoint's vector `name`, plus `offset`, `divided` by a number, as a parameter."""
        return self.parameter(self._vector(name, width, offset), divided=divided)

    def parameter(self, stored: ir.Value, *, divided: float = 1.0) -> ir.Value:
        """Stored floats in the precision of the graph, `divided` by a number before."""
        if divided == 1:
            return self._cast(stored, self.dtype)
        quotient = self.op("Mul", stored, self.constant([1 / divided]))
        return self.op("Cast", quotient, to=self.dtype)

    def _cast(self, stored: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A stored value in another type; the compiler keeps only the result."""
        assert stored.name is not None
        if stored.dtype == dtype:
            return stored
        if stored.name not in self._converted:
            self._converted[stored.name] = self.op("Cast", stored, to=dtype)
        return self._converted[stored.name]

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

    def residual(self, x: ir.Value, *, factor: float = 1.0, wide: bool = False) -> ir.Value:
        """x * factor as the stream that every block adds its result to.

        A `wide` stream has 32 bits whatever the graph's precision: its sums would not fit 16.
        """
        if factor == 1:
            return x
        return self.op("Mul", x, self.parameter(self.constant([factor])))

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
        """RMS norm over the last axis by the checkpoint's vector `name` [width], plus `offset`.

        The result is `wide` if it goes to a stream that is, and `divided` by a number; x is
        `centred` if its mean is subtracted first.
        """
        gain = self.vector(name, width, offset, divided=divided)
        if centred:
            return self.op("LayerNormalization", x, gain, axis=-1, epsilon=epsilon)
        return self.op(
            "SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=epsilon, stash_type=1
        )

    def norm_heads(
        self, x: ir.Value, heads: int, name: str, width: int, epsilon: float, offset: float = 0.0
    ) -> ir.Value:
        """RMS norm of each head on its own: x [B, S, heads * width], gain [width]."""
        split = self.op("Reshape", x, self.constant([0, 0, heads, width]))
        normed = self.norm(split, name, width, epsilon, offset)
        return self.op("Reshape", normed, self.constant([0, 0, heads * width]))

    def norm_heads_plainly(self, x: ir.Value, heads: int, width: int, epsilon: float) -> ir.Value:
        """The same without a gain."""
        split = self.op("Reshape", x, self.constant([0, 0, heads, width]))
        gain = self.parameter(self.array(f"const.ones.{width}", np.ones(width, np.float32)))
        normed = self.op(
            "SimplifiedLayerNormalization", split, gain, axis=-1, epsilon=epsilon, stash_type=1
        )
        return self.op("Reshape", normed, self.constant([0, 0, heads * width]))

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
        outputs = self.ops(
            "SkipLayerNormalization" if centred else "SkipSimplifiedLayerNormalization",
            *(stream, result, self.vector(name, width, offset, divided=divided)),
            outputs=4,
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        return outputs[0], outputs[3]

    def full(self, x: ir.Value) -> ir.Value:
        """x in 32 bits."""
        return x

    def made_full(self, x: ir.Value) -> ir.Value:
        """x, which was made in 32 bits whatever the graph's precision."""
        return x

    def operand(self, x: ir.Value) -> ir.Value:
        """x as linear layers take it."""
        return x

    def layer_norm(
        self,
        x: ir.Value,
        name: str,
        width: int,
        epsilon: float,
        result: ir.Value | None = None,
        *,
        bias: bool = True,
    ) -> ir.Value:
        """Layer norm of x + result over the last axis by the checkpoint's module `name` [width]."""
        parts = [self.vector(f"{name}.{part}", width) for part in norm_parts(bias)]
        if result is None:
            return self.op("LayerNormalization", x, *parts, axis=-1, epsilon=epsilon)
        return self.op(
            "SkipLayerNormalization",
            *(x, result, *parts),
            domain=MICROSOFT,
            epsilon=epsilon,
        )

    def padding(self, mask: ir.Value, head_dim: int | None) -> ir.Value:
        """What attention among all tokens of a text takes of the mask [B, S], 1 for tokens.

        `head_dim`: of the heads that attend; None where something is added to their products.
        """
        return self.op("Cast", mask, to=ir.DataType.INT32)

    def unit(self, x: ir.Value, width: int) -> ir.Value:
        """x [..., width] at unit length."""
        return self.op("LpNormalization", x, axis=-1, p=2)

    def add(self, stream: ir.Value, result: ir.Value) -> ir.Value:
        """stream + result."""
        return self.op("Add", stream, result)

    def divide(self, x: ir.Value, by: float) -> ir.Value:
        """x / by."""
        return x if by == 1 else self.op("Mul", x, self.parameter(self.constant([1 / by])))

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

    def _scalar(self, name: str, value: np.generic) -> ir.Value:
        return self.array(name, np.asarray(value))

    def save(self, path: Path, *, name: str) -> None:
        """Write the graph; the same calls give the same bytes."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._used.values()),
            opset_imports=dict(self.opsets),
            name=name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="appliance")
        proto = ir.serde.serialize_model(model)
        del proto.graph.value_info[:]  # says again what the initializers say
        path.write_bytes(proto.SerializeToString(deterministic=True))


def norm_parts(bias: bool) -> Sequence[str]:
    """The vectors of a layer norm."""
    return ("weight", "bias") if bias else ("weight",)


def _silu(graph: GraphBuilder, y: ir.Value, divided: float) -> ir.Value:
    # y * divided may outgrow the graph's precision: of infinity, too, the sigmoid is one or zero.
    return graph.op("Mul", y, graph.op("Sigmoid", graph.divide(y, 1 / divided)))


def _gelu(graph: GraphBuilder, y: ir.Value, divided: float) -> ir.Value:
    return _whole(graph, y, divided, lambda y: graph.op("Gelu", y, domain=MICROSOFT))


def _gelu_tanh(graph: GraphBuilder, y: ir.Value, divided: float) -> ir.Value:
    return _whole(graph, y, divided, lambda y: graph.op("Gelu", y, approximate="tanh"))


def _whole(
    graph: GraphBuilder, y: ir.Value, divided: float, open_: Callable[[ir.Value], ir.Value]
) -> ir.Value:
    if divided == 1:
        return open_(y)
    opened = open_(graph.op("Mul", graph.full(y), graph.constant([divided])))
    return graph.op("Cast", graph.op("Mul", opened, graph.constant([1 / divided])), to=graph.dtype)


ACTIVATIONS: Mapping[Activation, Callable[[GraphBuilder, ir.Value, float], ir.Value]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}
"""activation(y * divided) / divided, of y and what it is divided by."""
