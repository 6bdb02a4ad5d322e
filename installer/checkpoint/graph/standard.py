"""Half-precision graphs of standard operators alone, which TensorRT's parser reads.

Owns how norms and sums are said in them. The stream that blocks add to stays in 32 bits, as do
norms: a compiler of whole graphs does such work within its other kernels, and sums of many layers
outgrow 16 bits first. Refuses grades whose integers have zero points
(docs/decisions/0151-grades-for-tensorrt.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from installer.checkpoint.graph.builder import Attribute
from installer.checkpoint.graph.half import HalfBuilder
from installer.checkpoint.quantize import FLOAT_BITS, Scheme
from installer.checkpoint.tensors import Tensors
from installer.checkpoint.weights import WeightFiles

OPSETS: Mapping[str, int] = {"": 24}


def has_standard_graph(scheme: Scheme) -> bool:
    """Whether TensorRT can read weights that are stored this way: it knows no zero points."""
    return scheme.integer_products or scheme.layer_bits in FLOAT_BITS


class StandardBuilder(HalfBuilder):
    """A half-precision graph without any operator of ONNX Runtime's own."""

    opsets = OPSETS

    def __init__(self, tensors: Tensors, files: WeightFiles, scheme: Scheme) -> None:
        assert has_standard_graph(scheme), scheme
        super().__init__(tensors, files, scheme)
        self._in_full: set[ir.Value] = set()

    def ops(
        self,
        kind: str,
        *inputs: ir.Value | None,
        outputs: int,
        domain: str = "",
        **attributes: Attribute,
    ) -> Sequence[ir.Value]:
        """As for every graph; left-out inputs at the end are not named, which the parser needs."""
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        return super().ops(kind, *inputs, outputs=outputs, domain=domain, **attributes)

    def residual(self, x: ir.Value) -> ir.Value:
        """x in 32 bits."""
        return self._full(x)

    def norm(self, x: ir.Value, name: str, width: int, epsilon: float) -> ir.Value:
        """RMS norm over the last axis in 32 bits, then narrowed."""
        gain = self.floats(name, (width,), [self.tensors.vector(name, width)])
        normed = self.op(
            "RMSNormalization", self._full(x), gain, axis=-1, epsilon=epsilon, stash_type=1
        )
        return self.op("Cast", normed, to=self.dtype)

    def norm_sum(
        self, stream: ir.Value, result: ir.Value, name: str, width: int, epsilon: float
    ) -> tuple[ir.Value, ir.Value]:
        """RMS norm of stream + result; it and the sum."""
        total = self.add(stream, result)
        return self.norm(total, name, width, epsilon), total

    def add(self, stream: ir.Value, result: ir.Value) -> ir.Value:
        """stream + result, in 32 bits."""
        total = self.op("Add", self._full(stream), self._full(result))
        self._in_full.add(total)
        return total

    def _full(self, x: ir.Value) -> ir.Value:
        """x in 32 bits."""
        if x not in self._in_full:
            x = self.op("Cast", x, to=ir.DataType.FLOAT)
            self._in_full.add(x)
        return x
