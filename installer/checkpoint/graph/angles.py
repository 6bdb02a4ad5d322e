"""The angles by which queries and keys are turned: tables in the graph, and turning by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.kinds import Kinds
from installer.checkpoint.graph.operators import MICROSOFT
from installer.checkpoint.graph.rope import Rope
from installer.checkpoint.quantize import Float32

Tables = tuple[ir.Value, ir.Value]
"""Cosines and sines, [context, turned / 2], in the precision of the graph."""


class Turned(Protocol):
    """What angles are made of: the kinds of the layers, and how many positions there are."""

    @property
    def kinds(self) -> Kinds: ...

    @property
    def context(self) -> int: ...


def angles(graph: GraphBuilder, shape: Turned) -> Sequence[Tables]:
    """The tables of each layer; layers with the same angles share them."""
    made: dict[Rope, Tables] = {}
    for kind in shape.kinds:
        if kind.rope not in made:
            made[kind.rope] = tables_of(graph, kind.rope, shape.context, len(made))
    return [made[kind.rope] for kind in shape.kinds]


def turned(
    graph: GraphBuilder,
    x: ir.Value,
    positions: ir.Value,
    tables: Tables,
    heads: int,
    width: int,
    rope: Rope,
) -> ir.Value:
    """x [B, S, heads * width], each token turned by its position: all [B, S], or the first [1]."""
    how = {"interleaved": 1} if rope.interleaved else {}
    if rope.turned != width:
        how |= {"num_heads": heads, "rotary_embedding_dim": rope.turned}
    return graph.op("RotaryEmbedding", x, positions, *tables, domain=MICROSOFT, **how)


def tables_of(graph: GraphBuilder, rope: Rope, context: int, index: int) -> Tables:
    """The tables of some angles; `index`: how many others the graph has."""
    size, magnitude = (context, rope.turned // 2), np.float32(rope.magnitude)

    def table(name: str, function: Callable[..., Float32]) -> ir.Value:
        pieces = (function(a) * magnitude for a in rope.angles(context))
        name = f"rope.{name}" if index == 0 else f"rope.{name}.{index}"
        return graph.parameter(graph.floats(name, size, pieces))

    return table("cosines", np.cos), table("sines", np.sin)
