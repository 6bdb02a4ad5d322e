"""What goes between layers: the stream that every block adds to, its norms, and its precision.

Owns how these are said where activations have 32 bits; half.py says them for fewer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.operators import MICROSOFT, Operators


class Stream(Operators):
    """A graph's words for what is added up and normed."""

    def residual(self, x: ir.Value, *, factor: float = 1.0, wide: bool = False) -> ir.Value:
        """x * factor as the stream that every block adds its result to.

        A `wide` stream has 32 bits whatever the graph's precision: its sums would not fit 16.
        """
        if factor == 1:
            return x
        return self.op("Mul", x, self.parameter(self.constant([factor])))

    def add(self, stream: ir.Value, result: ir.Value) -> ir.Value:
        """stream + result."""
        return self.op("Add", stream, result)

    def divide(self, x: ir.Value, by: float) -> ir.Value:
        """x / by."""
        return x if by == 1 else self.op("Mul", x, self.parameter(self.constant([1 / by])))

    def full(self, x: ir.Value) -> ir.Value:
        """x in 32 bits."""
        return x

    def made_full(self, x: ir.Value) -> ir.Value:
        """x, which was made in 32 bits whatever the graph's precision."""
        return x

    def operand(self, x: ir.Value) -> ir.Value:
        """x as linear layers take it."""
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
        self,
        x: ir.Value,
        heads: int,
        name: str,
        width: int,
        epsilon: float,
        offset: float = 0.0,
        *,
        divided: float = 1.0,
    ) -> ir.Value:
        """RMS norm of each head on its own: x [B, S, heads * width], gain [width]; the result is
        `divided` by a number."""
        split = self.op("Reshape", x, self.constant([0, 0, heads, width]))
        normed = self.norm(split, name, width, epsilon, offset, divided=divided)
        return self.op("Reshape", normed, self.constant([0, 0, heads * width]))

    def norm_heads_plainly(
        self, x: ir.Value, heads: int, width: int, epsilon: float, *, divided: float = 1.0
    ) -> ir.Value:
        """The same without a gain."""
        return self.norm_heads(x, heads, self._ones(width), width, epsilon, divided=divided)

    def norm_plainly(
        self, x: ir.Value, width: int, epsilon: float, *, divided: float = 1.0
    ) -> ir.Value:
        """`norm` without a gain."""
        return self.norm(x, self._ones(width), width, epsilon, divided=divided)

    def _ones(self, width: int) -> str:
        """The name of a gain that changes nothing."""
        name = f"ones.{width}"
        self.give(name, np.ones(width, np.float32))
        return name

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

    def unit(self, x: ir.Value, width: int) -> ir.Value:
        """x [..., width] at unit length."""
        return self.op("LpNormalization", x, axis=-1, p=2)


def norm_parts(bias: bool) -> Sequence[str]:
    """The vectors of a layer norm."""
    return ("weight", "bias") if bias else ("weight",)
