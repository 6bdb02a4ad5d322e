"""One graph in the making: operators, constants, inputs and outputs, over the stored weights.

Owns the words that every graph is written in, and its bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from installer.checkpoint.graph.storage import Storage
from installer.checkpoint.quantize import Scheme
from installer.checkpoint.tensors import Tensors
from installer.checkpoint.weights import WeightFiles

MICROSOFT = "com.microsoft"
OPSETS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10

Dim = int | str
Attribute = int | float | str | Sequence[int]


class Operators(Storage):
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
