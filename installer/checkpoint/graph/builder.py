"""Builds one ONNX graph over onnx-ir while its weights stream into the bundle's files.

Owns the words in which model families are written: an operator, a constant, a vector, a linear
layer, a table. Knows how each precision expresses a linear layer (MatMul, or MatMulNBits with
8-bit activations) and a table (Gather and Gemm, or their block-quantized forms). Knows nothing
of any architecture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from installer.checkpoint.quantize import Blocks, Float32, Scheme, block_size, quantize
from installer.checkpoint.tensors import Tensors
from installer.checkpoint.weights import WeightFiles, alias

MICROSOFT = "com.microsoft"
OPSETS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10
INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level: without it the kernel is several times slower."""

Dim = int | str
Attribute = int | float | str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Table:
    """An embedding table [entries, width] in column parts that each fit a file.

    A part is (columns, parameters): the float table alone, or packed, scales and zero points.
    """

    name: str
    entries: int
    width: int
    bits: int
    parts: tuple[tuple[int, tuple[ir.Value, ...]], ...]


class GraphBuilder:
    """One graph in the making. Values it hands out are strings of the graph, not arrays."""

    def __init__(self, tensors: Tensors, files: WeightFiles, scheme: Scheme) -> None:
        self.tensors = tensors
        self._files = files
        self._scheme = scheme
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._made: Counter[str] = Counter()

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """Declare an input of the graph."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, shape: Sequence[Dim]) -> None:
        """Declare `value`, a float tensor, an output of the graph."""
        value.name, value.shape = name, ir.Shape(shape)
        value.type = ir.TensorType(ir.DataType.FLOAT)
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
                self._initializers[value.name] = value
        return node.outputs

    def constant(self, values: Sequence[int] | Sequence[float]) -> ir.Value:
        """A short vector of int64 or float32, stored in the graph itself; equal ones are shared."""
        whole = all(isinstance(value, int) for value in values)
        name = "const." + "_".join(str(value) for value in values)
        if name not in self._initializers:
            array = np.array(values, dtype=np.int64 if whole else np.float32)
            tensor = ir.tensor(array, name=name)
            return ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        return self._initializers[name]

    def floats(self, name: str, shape: tuple[int, ...], pieces: Iterable[Float32]) -> ir.Value:
        """A float32 parameter, given in row-major pieces."""
        return self._files.write(name, ir.DataType.FLOAT, shape, pieces)

    def vector(self, name: str, width: int) -> ir.Value:
        """The checkpoint's vector `name` as a float32 parameter."""
        if name in self._initializers:
            return self._initializers[name]
        return self.floats(name, (width,), [self.tensors.vector(name, width)])

    def linear(
        self, x: ir.Value, name: str, inner: int, outer: int, *, bias: bool = False
    ) -> ir.Value:
        """x [..., inner] -> [..., outer] by the checkpoint's `name`.weight [outer, inner]."""
        weight = f"{name}.weight"
        self.tensors.expect(weight, (outer, inner))
        addend = self.vector(f"{name}.bias", outer) if bias else None
        bits = self._scheme.layer_bits
        if bits == 32:
            pieces = self.tensors.transposed(weight)
            y = self.op("MatMul", x, self.floats(f"{name}.transposed", (inner, outer), pieces))
            return y if addend is None else self.op("Add", y, addend)
        block = block_size(inner)
        blocks = self._quantized(name, (outer, inner), self.tensors.rows(weight), bits, block)
        return self._matmul_n_bits(x, blocks, bits, block, inner, outer, addend)

    def table(self, name: str, entries: int, width: int) -> Table:
        """Store the checkpoint's table `name` once, for lookup and for scores."""
        self.tensors.expect(name, (entries, width))
        bits = self._scheme.table_bits if width % 16 == 0 else 32
        parts = []
        for start, stop in self._columns(entries, width, bits):
            part = name if (start, stop) == (0, width) else f"{name}.{start}"
            pieces = self.tensors.rows(name, start, stop)
            shape = (entries, stop - start)
            if bits == 32:
                stored: tuple[ir.Value, ...] = (self.floats(part, shape, pieces),)
            else:
                stored = self._quantized(part, shape, pieces, bits, table_block(width))
            parts.append((stop - start, stored))
        return Table(name, entries, width, bits, tuple(parts))

    def lookup(self, table: Table, ids: ir.Value) -> ir.Value:
        """ids [...] -> rows [..., width]."""
        looked_up = [self._lookup_part(table, part, ids) for part in table.parts]
        if len(looked_up) == 1:
            return looked_up[0]
        return self.op("Concat", *looked_up, axis=-1)

    def scores(self, x: ir.Value, table: Table) -> ir.Value:
        """x [n, width] -> products with every row, [n, entries]."""
        widths = [width for width, _ in table.parts]
        xs: Sequence[ir.Value] = [x]
        if len(widths) > 1:
            xs = self.ops("Split", x, self.constant(widths), outputs=len(widths), axis=-1)
        total: ir.Value | None = None
        for piece, (width, stored) in zip(xs, table.parts, strict=True):
            if table.bits == 32:
                total = self.op("Gemm", piece, stored[0], total, transB=1)
                continue
            block = table_block(table.width)
            part = self._matmul_n_bits(piece, stored, table.bits, block, width, table.entries, None)
            total = part if total is None else self.op("Add", total, part)
        assert total is not None
        return total

    def save(self, path: Path, *, name: str) -> None:
        """Write the graph; the same calls give the same bytes."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=OPSETS,
            name=name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="appliance")
        proto = ir.serde.serialize_model(model)
        del proto.graph.value_info[:]  # says again what the initializers say
        path.write_bytes(proto.SerializeToString(deterministic=True))

    def _quantized(
        self, name: str, shape: tuple[int, int], rows: Iterable[Float32], bits: int, block: int
    ) -> tuple[ir.Value, ...]:
        """Quantize and store a matrix: packed integers, scales, zero points."""
        count, width = shape
        runs = -(-width // block)
        rest: list[Blocks] = []

        def packed() -> Iterator[npt.NDArray[np.uint8]]:
            for piece in rows:
                blocks = quantize(piece, bits, block)
                yield blocks.packed
                rest.append(Blocks(blocks.packed[:0], blocks.scales, blocks.zero_points))

        integers = self._files.write(
            f"{name}.packed", ir.DataType.UINT8, (count, runs, block * bits // 8), packed()
        )
        scales = self.floats(f"{name}.scales", (count, runs), (b.scales for b in rest))
        zeros = self._files.write(
            f"{name}.zeros",
            ir.DataType.UINT8,
            (count, -(-runs * bits // 8)),
            (b.zero_points for b in rest),
        )
        return integers, scales, zeros

    def _matmul_n_bits(
        self,
        x: ir.Value,
        stored: tuple[ir.Value, ...],
        bits: int,
        block: int,
        inner: int,
        outer: int,
        bias: ir.Value | None,
    ) -> ir.Value:
        packed, scales, zeros = stored
        return self.op(
            "MatMulNBits",
            *(x, packed, scales, zeros),
            *(() if bias is None else (None, bias)),
            domain=MICROSOFT,
            K=inner,
            N=outer,
            bits=bits,
            block_size=block,
            accuracy_level=INT8_ACTIVATIONS,
        )

    def _lookup_part(
        self, table: Table, part: tuple[int, tuple[ir.Value, ...]], ids: ir.Value
    ) -> ir.Value:
        width, stored = part
        if table.bits == 32:
            return self.op("Gather", stored[0], ids)
        packed, scales, zeros = stored
        flat = alias(packed, f"{packed.name}.flat", (table.entries, width * table.bits // 8))
        return self.op(
            "GatherBlockQuantized",
            *(flat, ids, scales, zeros),
            domain=MICROSOFT,
            bits=table.bits,
            block_size=table_block(table.width),
            gather_axis=0,
            quantize_axis=1,
        )

    def _columns(self, entries: int, width: int, bits: int) -> Iterator[tuple[int, int]]:
        """Column ranges of a table such that each fits a file; one range if all do."""
        unit = 1 if bits == 32 else table_block(width)
        widest = self._files.limit // (entries * bits // 8) // unit * unit
        step = width if widest >= width else max(unit, widest)
        for start in range(0, width, step):
            yield start, min(start + step, width)


def table_block(width: int) -> int:
    """Block size that divides the row, so that lookup and product share the packed integers."""
    block = block_size(width)
    while width % block:
        block //= 2
    return block
