"""Half-precision graphs of standard operators alone, which TensorRT's parser reads.

Owns how norms and sums are said in them. The stream that blocks add to stays in 32 bits, as do
norms: a compiler of whole graphs does such work within its other kernels, and sums of many layers
outgrow 16 bits first. Refuses grades whose integers have zero points
(docs/decisions/0151-grades-for-tensorrt.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from installer.checkpoint.graph.half import HalfBuilder
from installer.checkpoint.graph.operators import Attribute
from installer.checkpoint.quantize import FLOAT_BITS, Scheme
from installer.checkpoint.tensors import Tensors
from installer.checkpoint.weights import WeightFiles

OPSETS: Mapping[str, int] = {"": 24}


def has_standard_graph(scheme: Scheme) -> bool:
    """Whether TensorRT can read weights that are stored this way: it knows no zero points."""
    plain = scheme.integer_products or scheme.byte_floats
    return plain or scheme.layer_bits in FLOAT_BITS


class StandardBuilder(HalfBuilder):
    """A half-precision graph without any operator of ONNX Runtime's own."""

    opsets = OPSETS
    full_norms = True
    norm_operator = "RMSNormalization"

    def __init__(self, tensors: Tensors, files: WeightFiles, scheme: Scheme) -> None:
        assert has_standard_graph(scheme), scheme
        super().__init__(tensors, files, scheme)

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

    def residual(self, x: ir.Value, *, factor: float = 1.0, wide: bool = True) -> ir.Value:
        """x * factor as the stream that every block adds its result to, always in 32 bits."""
        return super().residual(x, factor=factor, wide=True)
