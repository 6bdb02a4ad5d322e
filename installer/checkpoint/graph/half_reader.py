"""Half-precision graphs of models that read whole texts, over the weights of the CPU's graphs.

Owns what embedders and rerankers need of 16-bit floats beyond a decoder (half.py): layer norms in
32 bits over a stream of 32 bits, what of a batch is padding, unit length, and what blocks of 8-bit
integers become. Every operator has a kernel in ONNX Runtime's CUDA provider; why these:
docs/decisions/0260-encoders-on-a-gpu.md.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.floats import BlocksAsFloats
from installer.checkpoint.graph.half import HalfBuilder
from installer.checkpoint.graph.storage import Matrix, QuantizedMatrix
from installer.checkpoint.graph.stream import norm_parts

_HEAD_UNIT = 8
"""Numbers of a head that CUDA's attention without a table of all products takes at once."""
_SMALLEST_SQUARE = 1e-24
"""Below it a vector is as good as zero, and stays zero."""


def token_bytes(hidden: int, inner: int, attended: int) -> int:
    """Bytes that a token takes while it is computed, at most.

    `hidden` numbers are between the layers, `inner` within a feed-forward, `attended` in queries,
    keys and values together.
    """
    # The stream, its sum and its norm; gate, up, what is made of them; heads, turned and laid out.
    return 10 * hidden + max(10 * inner, 6 * attended)


class CompactReader(HalfBuilder):
    """A graph whose activations are 16-bit floats and whose blocks of integers stay as they are."""

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
        """Layer norm of x + result, both in 32 bits and so is what comes out."""
        total = self.full(x)
        if result is not None:
            total = self.add(total, result)
        parts = [self._vector(f"{name}.{part}", width) for part in norm_parts(bias)]
        normed = self.op("LayerNormalization", total, *parts, axis=-1, epsilon=epsilon)
        return self.made_full(normed)

    def padding(self, mask: ir.Value, head_dim: int | None) -> ir.Value:
        """Lengths of the texts, then twice where each row of the batch begins and the last ends.

        int32 [3 * B + 2]: the one form of a mask with which the provider keeps no table of all
        products of queries and keys. The kernel that keeps one reads this form wrongly.
        """
        if head_dim is None or head_dim % _HEAD_UNIT:
            return super().padding(mask, head_dim)
        along = self.constant([1])
        lengths = self.op("ReduceSum", mask, along, keepdims=0)
        # From the mask's numbers: arithmetic on its shape would be done on the processor.
        whole = self.op("Max", mask, self.constant([1]))
        widths = self.op("ReduceSum", whole, along, keepdims=0)
        ends = self.op("CumSum", widths, self.constant([0]))
        starts = self.op("Concat", self.constant([0]), ends, axis=0)
        return self.op(
            "Cast", self.op("Concat", lengths, starts, starts, axis=0), to=ir.DataType.INT32
        )

    def unit(self, x: ir.Value, width: int) -> ir.Value:
        """x / |x|: what an RMS norm gives, over the root of the width."""
        gain = self.array(f"const.unit-{width}", np.full(width, width**-0.5, np.float32))
        return self.op(
            "SimplifiedLayerNormalization",
            *(self.full(x), gain),
            axis=-1,
            epsilon=_SMALLEST_SQUARE / width,
            stash_type=1,
        )


class HalfReader(BlocksAsFloats, CompactReader):
    """A graph of 16-bit floats alone: blocks of integers become the floats that they stand for.

    A batch of texts has hundreds of rows; products of floats are as fast there as any.
    """

    def gather_blocks(self, matrix: QuantizedMatrix, ids: ir.Value) -> ir.Value:
        """ids [...] -> rows of the matrix [..., inner]."""
        return self.op("Gather", self._floats(matrix), ids)

    def multiply(self, x: ir.Value, matrix: Matrix, bias: ir.Value | None = None) -> ir.Value:
        """x [..., inner] -> [..., outer]."""
        if not isinstance(matrix, QuantizedMatrix):
            return super().multiply(x, matrix, bias)
        columns = self.op("Transpose", self._floats(matrix), perm=[1, 0])
        return self._plus(self.op("MatMul", x, columns), bias)

    def _floats(self, matrix: QuantizedMatrix) -> ir.Value:
        """The rows that the integers stand for, [outer, inner]."""
        name = matrix.packed.name
        assert name is not None
        if name not in self._converted:
            # In 32 bits first, as with scales of whole rows: many are too small for 16.
            self._converted[name] = self.op("Cast", self.floats_of(matrix), to=self.dtype)
        return self._converted[name]
