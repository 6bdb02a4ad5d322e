"""A vision tower: the patches of one image become features that a decoder reads as tokens.

Owns the inputs and output of the tower's graph (docs/bundle-format.md) and what the towers here
share: embedding of patches, angles from rows and columns, attention over the whole image. A
family gives its own blocks. What depends on the image's size comes in as inputs, so that one
graph serves every size (appliance/compiler/grid.py computes them).
References: Dosovitskiy et al., An Image is Worth 16x16 Words (2021); Qwen2.5-VL Technical Report
(2025); Meng et al., DeepStack (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.operators import MICROSOFT
from installer.checkpoint.quantize import Float32

EPSILON = 1e-6
_THETA = 10_000.0
ROPE = {"rope_theta": _THETA, "rope_type": "axial"}
"""The one rope of these towers, where a config spells it out."""


@dataclass(frozen=True, slots=True)
class TowerShape:
    """The numbers of a tower. Counts; lengths of patches in pixels.

    Attributes:
        at: what its tensors' names begin with.
        out: width of a feature, which is the decoder's.
        merge: patches a side that become one token.
        side: of the square table of learned positions; 0: there is none.
        deep: layers whose states are given to the decoder too.
        window: tokens a side that attend to each other; 0: all attend to all.
        full: layers in which all attend to all nevertheless.
        counted: whether the decoder counts an image's tokens like words. The reference then takes
            patches row by row, each frame with all of its colours, and not token by token.
    """

    at: str
    hidden: int
    layers: int
    heads: int
    inner: int
    out: int
    channels: int
    patch: int
    temporal: int
    merge: int
    side: int = 0
    deep: tuple[int, ...] = ()
    window: int = 0
    full: frozenset[int] = frozenset()
    counted: bool = False

    @property
    def patch_width(self) -> int:
        """Numbers of one patch, all channels and frames."""
        return self.channels * self.temporal * self.patch**2

    @property
    def levels(self) -> int:
        """Features of one token."""
        return 1 + len(self.deep)


class Patches:
    """The patches of an image on their way through the tower: inputs, angles, attention.

    Args:
        first: the row and the column of the first patch.
        columns_first: whether the first half of a head's pairs turns with the column.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        shape: TowerShape,
        *,
        first: int = 0,
        columns_first: bool = False,
    ) -> None:
        self._graph = graph
        self._shape = shape
        patches = graph.input("patches", ir.DataType.FLOAT, ("patches", shape.patch_width))
        places = graph.input("positions", ir.DataType.INT64, ("patches", 2))
        if first:
            places = graph.op("Add", places, graph.constant([first]))
        frequencies = _frequencies(shape.hidden // shape.heads)
        turned = frequencies[::-1].copy() if columns_first else frequencies
        self._angles = rotations(graph, places, turned)
        self._first = graph.constant([0])
        self.given = patches

    def embed(self, *, bias: bool) -> ir.Value:
        """The patches as states [n, hidden]."""
        name = f"{self._shape.at}.patch_embed.proj"
        self._graph.tensors.flatten(f"{name}.weight")
        width, hidden = self._shape.patch_width, self._shape.hidden
        return self._graph.linear(self.given, name, width, hidden, bias=bias)

    def heads(self, x: ir.Value, at: str) -> Sequence[ir.Value]:
        """States [n, hidden] -> turned queries and keys, and values, [1, n, hidden] each."""
        graph, hidden = self._graph, self._shape.hidden
        merged = graph.linear(x, f"{at}.attn.qkv", hidden, 3 * hidden, bias=True)
        batch = graph.op("Unsqueeze", merged, self._first)
        return self.turn(*graph.ops("Split", batch, self._thirds, outputs=3, axis=-1))

    def turn(self, queries: ir.Value, keys: ir.Value, values: ir.Value) -> Sequence[ir.Value]:
        """Queries and keys turned, and values as they are, [1, n, hidden] each."""
        return self._rotate(queries), self._rotate(keys), values

    def attend(self, heads: Sequence[ir.Value], mask: ir.Value | None = None) -> ir.Value:
        """Queries, keys, values [b, s, hidden] -> [b, s, hidden]; `mask` [b, s] is 1 for real."""
        size = self._shape.hidden // self._shape.heads
        return self._graph.op(
            "MultiHeadAttention",
            *(*heads, *(() if mask is None else (None, mask))),
            domain=MICROSOFT,
            num_heads=self._shape.heads,
            scale=size**-0.5,
        )

    def flat(self, x: ir.Value) -> ir.Value:
        """[..., hidden] -> [n, hidden]."""
        return self._graph.op("Reshape", x, self._graph.constant([-1, self._shape.hidden]))

    def merged(self, x: ir.Value) -> ir.Value:
        """[n, hidden] -> [tokens, merge * merge * hidden]: a token's patches follow each other."""
        width = self._shape.hidden * self._shape.merge**2
        return self._graph.op("Reshape", x, self._graph.constant([-1, width]))

    def conclude(self, levels: Sequence[ir.Value]) -> None:
        """Make the output of the features [tokens, out] of each level."""
        graph = self._graph
        each = [graph.op("Unsqueeze", level, self._first) for level in levels]
        features = graph.op("Concat", *each, axis=0)
        graph.output(features, "features", (len(levels), "tokens", self._shape.out))

    @property
    def _thirds(self) -> ir.Value:
        return self._graph.constant([self._shape.hidden] * 3)

    def _rotate(self, x: ir.Value) -> ir.Value:
        return self._graph.op("RotaryEmbedding", x, self._first, *self._angles, domain=MICROSOFT)


class Windows:
    """Attention among the patches of each window, all windows in one batch."""

    def __init__(self, graph: GraphBuilder, patches: Patches) -> None:
        self._graph = graph
        self._patches = patches
        size = ("windows", "most")
        self._members = graph.input("windows", ir.DataType.INT64, size)
        self._mask = graph.input("window_mask", ir.DataType.INT32, size)
        self._places = graph.input("places", ir.DataType.INT64, ("patches",))

    def attend(self, heads: Sequence[ir.Value]) -> ir.Value:
        """Queries, keys, values [1, n, hidden] -> [n, hidden]."""
        graph = self._graph
        spread = [graph.op("Gather", self._patches.flat(x), self._members, axis=0) for x in heads]
        attended = self._patches.attend(spread, self._mask)
        return graph.op("Gather", self._patches.flat(attended), self._places, axis=0)


def learned(graph: GraphBuilder, shape: TowerShape, name: str) -> ir.Value:
    """Learned positions between the four nearest of the table `name`, [n, hidden]."""
    corners = graph.input("corners", ir.DataType.INT64, ("patches", 4))
    weights = graph.input("corner_weights", ir.DataType.FLOAT, ("patches", 4))
    size = (shape.side**2, shape.hidden)
    graph.tensors.expect(name, size)
    table = graph.parameter(graph.stored(name, size, graph.tensors.rows(name)))
    each = graph.op("Gather", table, corners, axis=0)
    weighted = graph.op("Mul", each, graph.op("Unsqueeze", weights, graph.constant([-1])))
    return graph.op("ReduceSum", weighted, graph.constant([1]), keepdims=0)


def rotations(
    graph: GraphBuilder, positions: ir.Value, frequencies: Float32
) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines [..., n] of positions [..., axes] by frequencies [axes, n].

    Each frequency belongs to one axis and is 0 for the others, so the product rounds as the one
    of its position does.
    """
    floats = graph.op("Cast", positions, to=ir.DataType.FLOAT)
    angles = graph.op("MatMul", floats, graph.array("rope.frequencies", frequencies))
    return graph.op("Cos", angles), graph.op("Sin", angles)


def layer_norm(
    graph: GraphBuilder, name: str, x: ir.Value, width: int, epsilon: float = EPSILON
) -> ir.Value:
    """Layer norm over the last axis."""
    gain, shift = graph.vector(f"{name}.weight", width), graph.vector(f"{name}.bias", width)
    return graph.op("LayerNormalization", x, gain, shift, axis=-1, epsilon=epsilon)


def _frequencies(head: int) -> Float32:
    """[2, head / 2]: the first half of a head's pairs turn with the row, the rest with the column.

    Reference: rotary embeddings by axis, as in the families' published implementations.
    """
    exponents = np.arange(0, head // 2, 2, dtype=np.float32) / np.float32(head // 2)
    each = (np.float32(1) / np.float32(_THETA) ** exponents).astype(np.float32)
    nothing = np.zeros_like(each)
    return np.array([[*each, *nothing], [*nothing, *each]], np.float32)
