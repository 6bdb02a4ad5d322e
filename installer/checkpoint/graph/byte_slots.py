"""Attention over a cache of 8-bit integers, in two graphs over the same weights.

`ByteSlots`, whose kernel reads the integers themselves, is for decoding, and `BytePrompt`, which
turns them into floats first, for prompts. `Observed` measures what the scales of such a cache must
hold. Why two: docs/decisions/0081-two-graphs.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.angles import angles, turned
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.cached import PAIR, Cached, choose_rows, declare_rows
from installer.checkpoint.graph.decoder import Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.indexed import Place
from installer.checkpoint.graph.recurrent import Part
from installer.checkpoint.quantize import Float32


@dataclass(frozen=True, slots=True)
class CacheScales:
    """What one step of a cached integer stands for: `layers[i]` is (keys, values) of layer i.

    Each is float32 [kv_heads * head_dim]: every channel of every head has its own.
    """

    layers: Sequence[tuple[Float32, Float32]]


class _Bytes(Cached):
    """What both forms over an 8-bit cache share."""

    _scales: CacheScales

    def cached(self, layer: int, place: Place, fresh: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What the integers at `place` stand for, and `fresh` as they will."""
        graph, at = self._graph, self._shape.place(layer)
        scale = self._scales.layers[at][PAIR.index(place.name)]
        scale = scale.reshape(self._shape.kv_heads, -1)[:, place.first :][:, : place.width].ravel()
        name = f"cache.{place.name}_{at}.index"
        step = graph.array(name, np.ascontiguousarray(scale))
        inverse = graph.array(f"{name}.inverse", (np.float32(1) / scale).astype(np.float32))
        old = graph.op("Cast", self._piece(layer, place, ir.DataType.INT8), to=ir.DataType.FLOAT)
        new = graph.signed_bytes(graph.op("Mul", fresh, inverse))
        new = graph.op("Cast", new, to=ir.DataType.FLOAT)
        return graph.op("Mul", old, step), graph.op("Mul", new, step)


class ByteSlots(_Bytes):
    """Slots of 8-bit integers, extended in place: any number of sequences, a few tokens each."""

    def __init__(self, graph: GraphBuilder, shape: DecoderShape, scales: CacheScales) -> None:
        super().__init__(graph, shape)
        self._rows = declare_rows(graph)
        self._query_seqlens = graph.input("query_seqlens", ir.DataType.INT32, ("batch",))
        self._tables = angles(graph, shape)
        self._scales = scales

    def attend(self, layer: int, heads: Heads, bias: ir.Value | None = None) -> ir.Value:
        heads = self._placed(layer, heads)
        past = self._past(layer, ir.DataType.INT8)
        at = self._shape.place(layer)
        scales = (
            self._graph.array(f"cache.{name}_{at}", scale)
            for name, scale in zip(PAIR, self._scales.layers[at], strict=True)
        )
        lengths = (self._seqlens, self._total)
        attended, *present = self._kernel(
            layer,
            *(*heads, *past, *lengths, *self._tables[layer]),
            *(None, None, None),
            *(*scales, None, None, self._query_seqlens),
            rotate=True,
            bias=bias,
            k_quant_type="PER_CHANNEL",
            v_quant_type="PER_CHANNEL",
            kv_cache_bit_width=8,
        )
        self._present(layer, present, ir.DataType.INT8)
        return attended

    def choose(self, x: ir.Value) -> ir.Value:
        return choose_rows(self._graph, self._shape, x, self._rows)

    def starts(self) -> ir.Value:
        """Where the rows' tokens begin, int64 [B, 1]."""
        counts = self._graph.op("Cast", self._query_seqlens, to=ir.DataType.INT64)
        counts = self._graph.op("Unsqueeze", counts, self._graph.constant([1]))
        return self._graph.op("Sub", self._ends(), counts)


class _Rotated(Cached):
    """Keys are turned before the kernel, so that what the cache will hold can be seen."""

    def __init__(self, graph: GraphBuilder, shape: DecoderShape) -> None:
        super().__init__(graph, shape)
        self._start = graph.input("start", ir.DataType.INT64, (1,))
        self._tables = angles(graph, shape)

    def _turned(self, layer: int, heads: Heads) -> Heads:
        """Queries and keys turned, values as they are."""
        queries, keys, values = self._placed(layer, heads)
        kv_heads = self._shape.heads_of(layer).kv_heads
        return (
            self._rotate(layer, queries, self._shape.heads),
            self._rotate(layer, keys, kv_heads),
            values,
        )

    def starts(self) -> ir.Value:
        """Where the tokens begin, int64 [1]."""
        return self._start

    def _rotate(self, layer: int, x: ir.Value, heads: int) -> ir.Value:
        """x [B, S, heads * head_dim], each token turned by its position."""
        rope, tables = self._shape.kinds[layer].rope, self._tables[layer]
        how = (self._shape.heads_of(layer).head_dim, rope)
        return turned(self._graph, x, self._start, tables, heads, *how)


class BytePrompt(_Rotated, _Bytes):
    """One sequence, any number of tokens from position `start`, over a slot that is only read.

    Every key and value, new ones too, is what the rounded one stands for: a prompt gives the
    same numbers in whatever pieces it is computed, up to the order of sums. The new integers
    come out for the caller to put into the slot.
    """

    def __init__(self, graph: GraphBuilder, shape: DecoderShape, scales: CacheScales) -> None:
        super().__init__(graph, shape)
        self._rows = declare_rows(graph)
        self._scales = scales
        self._read: dict[int, list[ir.Value]] = {}

    def attend(self, layer: int, heads: Heads, bias: ir.Value | None = None) -> ir.Value:
        queries, keys, values = self._turned(layer, heads)
        at = self._shape.place(layer)
        if at not in self._read:
            past = self._past(layer, ir.DataType.INT8)
            fresh, known = [], []
            for index, x in enumerate((keys, values)):
                name, scale = f"{PAIR[index]}_{at}", self._scales.layers[at][index]
                fresh.append(self._rounded(layer, name, x, scale))
                known.append(self._restored(layer, name, past[index], scale))
            self._read[at] = [*fresh, *known]
        lengths = (self._seqlens, self._total)
        attended, *_ = self._kernel(
            layer, queries, *self._read[at], *lengths, rotate=False, bias=bias
        )
        return attended

    def choose(self, x: ir.Value) -> ir.Value:
        return choose_rows(self._graph, self._shape, x, self._rows)

    def _rounded(self, layer: int, name: str, x: ir.Value, scale: Float32) -> ir.Value:
        """What the cache will hold of `x`; its integers become an output."""
        graph = self._graph
        inverse = graph.array(f"cache.{name}.inverse", (np.float32(1) / scale).astype(np.float32))
        integers = graph.signed_bytes(graph.op("Mul", x, inverse))
        sizes = ("batch", "tokens", self._width(layer))
        graph.output(integers, f"new_{name}", sizes, ir.DataType.INT8)
        floats = graph.op("Cast", integers, to=ir.DataType.FLOAT)
        return graph.op("Mul", floats, graph.array(f"cache.{name}", scale))

    def _restored(self, layer: int, name: str, slot: ir.Value, scale: Float32) -> ir.Value:
        """The first `start` positions of the slot as floats."""
        graph, own = self._graph, self._shape.heads_of(layer)
        zero, two = graph.constant([0]), graph.constant([2])
        floats = graph.op(
            "Cast", graph.op("Slice", slot, zero, self._start, two), to=ir.DataType.FLOAT
        )
        heads = scale.reshape(own.kv_heads, 1, own.head_dim)
        return graph.op("Mul", floats, graph.array(f"cache.{name}.heads", heads))


class Observed(_Rotated):
    """One sequence from its start, without a cache: the peaks of all keys and values."""

    def past(self, part: Part, layer: int, sizes: Sequence[int]) -> None:
        """Nothing was read before."""

    def present(self, part: Part, layer: int, value: ir.Value, sizes: Sequence[int]) -> None:
        """Nobody asks."""

    def attend(self, layer: int, heads: Heads, bias: ir.Value | None = None) -> ir.Value:
        graph, shape = self._graph, self._shape
        queries, keys, values = self._turned(layer, heads)
        for name, x in zip(PAIR, (keys, values), strict=True):
            if shape.kinds[layer].shares is not None:
                break
            peaks = graph.op("ReduceMax", graph.op("Abs", x), graph.constant([0, 1]), keepdims=0)
            graph.output(peaks, f"{name}_peaks_{shape.place(layer)}", (self._width(layer),))
        nothing = (None, None, self._seqlens, self._total)
        attended, *_ = self._kernel(layer, queries, keys, values, *nothing, rotate=False, bias=bias)
        return attended

    def cached(self, layer: int, place: Place, fresh: ir.Value) -> tuple[None, ir.Value]:
        """Nothing was read before."""
        return None, fresh

    def choose(self, x: ir.Value) -> None:
        """No logits are wanted."""
