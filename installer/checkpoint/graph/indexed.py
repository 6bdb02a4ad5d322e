"""Attention that reads only what an index finds of the tokens before: where the index stands in the
cache, and how what was found is said to the kernel.

Owns the keys of an index, which stand in the cached heads beside keys and values, where nothing
else is: slots, cached prefixes and an 8-bit cache so hold them without knowing of them. Owns also
the bias that shuts all other tokens out. How tokens are scored is the file's of each kind of index
(lightning.py, blocks.py). Why so: docs/decisions/0293-attention-by-an-index.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape

BEYOND = -1e30
"""The score of a token that a query does not see."""
_SHUT_OUT = {ir.DataType.FLOAT: -1e30, ir.DataType.FLOAT16: -60_000.0}
"""What is added to the products of a token that was not found."""


@dataclass(frozen=True, slots=True)
class Place:
    """Numbers of each cached head that belong to an index key.

    Attributes:
        name: of the cache that they are in.
        first, width: where in a head.
    """

    name: Literal["key", "value"]
    first: int
    width: int


@runtime_checkable
class Searchable(Protocol):
    """A form of attention that can be told which tokens to read."""

    def attend(self, layer: int, heads: Heads, bias: ir.Value | None = None) -> ir.Value:
        """As every form; `bias` [B, 1 or heads, S, T] is added to the products."""
        ...

    def positions(self) -> ir.Value:
        """Of the tokens, int64 [B, S]."""
        ...

    def starts(self) -> ir.Value:
        """Where the rows' tokens begin, int64, [B, 1] or one for all."""
        ...

    def total(self) -> ir.Value:
        """T, tokens of the longest row up to its last, int64 [1]."""
        ...

    def turn(
        self,
        layer: int,
        x: ir.Value,
        heads: int,
        width: int,
        *,
        interleaved: bool,
        positions: ir.Value | None = None,
    ) -> ir.Value:
        """x [B, S, heads * width] by the layer's angles, each token by its position, or by one of
        `positions`, int64 [B, S]."""
        ...

    def cached(self, layer: int, place: Place, fresh: ir.Value) -> tuple[ir.Value | None, ir.Value]:
        """What the cache holds at `place`, [B, T, all heads], None for nothing; `fresh`, of the
        tokens [B, S, all heads], as it will hold it."""
        ...


class Search:
    """What all layers of one graph share while they look for tokens."""

    def __init__(self, graph: GraphBuilder, form: Searchable, places: Sequence[Place]) -> None:
        self._graph = graph
        self._form = form
        self._places = places
        there = graph.op(
            "Range",
            graph.array("const.start", np.asarray(0, np.int64)),
            graph.op("Squeeze", form.total(), graph.constant([0])),
            graph.array("const.next", np.asarray(1, np.int64)),
        )
        own = graph.op("Unsqueeze", form.positions(), graph.constant([2]))
        self.there, self.positions, self.total = there, form.positions(), form.total()
        """Positions of all tokens, int64 [T], and of those that look, [B, S]; T, [1]."""
        self.beyond = graph.op("Greater", there, own)
        """Whether a token lies behind the one that looks for others, [B, S, T]."""
        starts = form.starts()
        old = graph.op("Greater", starts, there)
        self._is_old = graph.op("Unsqueeze", old, graph.constant([-1]))
        """Whether what a row needs of a token is in the cache, [B, T, 1]."""
        behind = graph.op("Max", graph.op("Sub", there, starts), graph.constant([0]))
        last = graph.op("ReduceMax", form.positions(), graph.constant([1]), keepdims=1)
        which = graph.op("Min", behind, graph.op("Sub", last, starts))
        self._which = graph.op("Unsqueeze", which, graph.constant([-1]))
        """Else which of its new tokens that is, [B, T, 1]; none sees what only fills a row."""

    def recall(self, layer: int, fresh: ir.Value, heads: int) -> ir.Value:
        """The index keys of all tokens, [B, T, width], of which `fresh` [B, S, width] are new."""
        graph = self._graph
        widths = [heads * place.width for place in self._places]
        parts: Sequence[ir.Value] = [fresh]
        if len(widths) > 1:
            sizes = graph.constant(widths)
            parts = graph.ops("Split", fresh, sizes, outputs=len(widths), axis=-1)
        known = [
            self._form.cached(layer, place, part)
            for place, part in zip(self._places, parts, strict=True)
        ]
        new = self._joined([fresh for _, fresh in known])
        old = [old for old, _ in known if old is not None]
        return self._put_behind(self._joined(old), new) if old else new

    def shut_out(self, scores: ir.Value, count: int) -> ir.Value:
        """All but the `count` tokens with the highest scores [B, S, T]; a bias [B, 1, S, T]."""
        graph = self._graph
        most = graph.op("Min", self.total, graph.constant([count]))
        scores = graph.op("Where", self.beyond, graph.constant([BEYOND]), scores)
        _, found = graph.ops("TopK", scores, most, outputs=2, axis=-1)
        return graph.op("Unsqueeze", shut(graph, scores, found), graph.constant([1]))

    def _joined(self, parts: Sequence[ir.Value]) -> ir.Value:
        return parts[0] if len(parts) == 1 else self._graph.op("Concat", *parts, axis=-1)

    def _put_behind(self, old: ir.Value, new: ir.Value) -> ir.Value:
        """Each row's new keys [B, S, any] behind its old ones, which are of old [B, T, any] those
        before its start."""
        graph = self._graph
        moved = graph.op("GatherND", new, self._which, batch_dims=1)
        return graph.op("Where", self._is_old, old, moved)


def shut(graph: GraphBuilder, scores: ir.Value, found: ir.Value) -> ir.Value:
    """What is added to the products of all that have scores [..., n], but for those `found`."""
    closed = graph.op("Expand", graph.constant([_SHUT_OUT[graph.dtype]]), graph.op("Shape", scores))
    opened = graph.op("Expand", graph.constant([0.0]), graph.op("Shape", found))
    bias = graph.op("ScatterElements", closed, found, opened, axis=-1)
    return bias if graph.dtype == ir.DataType.FLOAT else graph.op("Cast", bias, to=graph.dtype)


def behind(kv_heads: int, head_dim: int, width: int) -> tuple[Place, Place]:
    """Where a key of an index stands: half behind the keys of `kv_heads` heads of `head_dim`, half
    behind their values."""
    share = width // (2 * kv_heads)
    return Place("key", head_dim, share), Place("value", head_dim, share)


def widen(
    graph: GraphBuilder, shape: DecoderShape, own: int, heads: Heads, fresh: ir.Value | None
) -> Heads:
    """Heads of `own` numbers with halves of an index key behind keys and values, and zeros behind
    queries: as wide as those of `shape`."""
    room = shape.head_dim - own
    halves: Sequence[ir.Value | None] = (None, None)
    if fresh is not None:
        sizes = graph.constant([shape.kv_heads * room] * 2)
        halves = graph.ops("Split", fresh, sizes, outputs=2, axis=-1)
    counts = (shape.heads, shape.kv_heads, shape.kv_heads)
    queries, keys, values = (
        _with_behind(graph, x, half, count, own, room)
        for x, half, count in zip(heads, (None, *halves), counts, strict=True)
    )
    return queries, keys, values


def _with_behind(
    graph: GraphBuilder, x: ir.Value, behind: ir.Value | None, heads: int, own: int, room: int
) -> ir.Value:
    """x [B, S, heads * own] -> [B, S, heads * (own + room)], with `behind` there or zeros."""
    apart = graph.op("Reshape", x, graph.constant([0, 0, heads, own]))
    if behind is None:
        sizes = graph.op("Shape", apart, start=0, end=3)
        sizes = graph.op("Concat", sizes, graph.constant([room]), axis=0)
        rest = graph.op("Expand", graph.parameter(graph.constant([0.0])), sizes)
    else:
        rest = graph.op("Reshape", behind, graph.constant([0, 0, heads, room]))
    both = graph.op("Concat", apart, rest, axis=-1)
    return graph.op("Reshape", both, graph.constant([0, 0, heads * (own + room)]))
