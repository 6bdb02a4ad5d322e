"""Attention over the key-value cache, in each form that a decoder graph can have.

Owns the decoder graphs' inputs and outputs (docs/bundle-format.md). `FloatSlots` is the only
graph for the CPU of the grades with a float32 cache; `HalfSlots` is its like for CUDA, of every
grade. With an 8-bit cache there are two graphs over the same
weights: `ByteSlots`, whose kernel reads the integers themselves, for decoding, and `BytePrompt`,
which turns them into floats first, for prompts. `Observed` measures what the scales of such a
cache must hold. Why two: docs/decisions/0081-two-graphs.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph import selection
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.chunks import Marker
from installer.checkpoint.graph.decoder import Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.indexed import Place
from installer.checkpoint.graph.kinds import Kinds
from installer.checkpoint.graph.operators import MICROSOFT, Attribute
from installer.checkpoint.graph.recurrent import Part
from installer.checkpoint.graph.rope import Rope
from installer.checkpoint.graph.sharpening import Sharpener, count, positions_from
from installer.checkpoint.quantize import Float32

PAIR = ("key", "value")
_BIAS, _SINKS = 10, 11
"""Which of the kernel's inputs they are."""


@dataclass(frozen=True, slots=True)
class CacheScales:
    """What one step of a cached integer stands for: `layers[i]` is (keys, values) of layer i.

    Each is float32 [kv_heads * head_dim]: every channel of every head has its own.
    """

    layers: Sequence[tuple[Float32, Float32]]


class _Form:
    """What all forms share: tokens, lengths and angles."""

    _tables: Sequence[Tables]

    def __init__(self, graph: GraphBuilder, shape: DecoderShape) -> None:
        self._graph = graph
        self._shape = shape
        self.ids = graph.input("input_ids", ir.DataType.INT64, ("batch", "tokens"))
        self._seqlens = graph.input("seqlens_k", ir.DataType.INT32, ("batch",))
        self._total = graph.input("total_sequence_length", ir.DataType.INT32, ())
        self._sharpener = Sharpener(graph, shape.context, self.positions)
        self._marker = Marker(graph, shape, self.positions)
        self._known: dict[int, list[ir.Value]] = {}
        """Each layer's slots, as inputs."""
        self._at: ir.Value | None = None
        self._until: ir.Value | None = None

    def conclude(self, scores: ir.Value) -> None:
        self._graph.output(scores, "logits", ("rows", self._shape.vocab))

    def _placed(self, layer: int, heads: Heads) -> Heads:
        """Queries that grow with their position, where the layer's do, and marks of chunks."""
        queries, keys, values = heads
        queries = self._sharpener.sharpen(queries, self._shape.kinds[layer].sharpening)
        return self._marker.mark(layer, (queries, keys, values))

    def positions(self) -> ir.Value:
        """Of the tokens, int64 [B, S]."""
        if self._at is None:
            counted = count(self._graph, self.ids, 1)
            self._at = positions_from(self._graph, counted, self.starts(), self._shape.context)
        return self._at

    def starts(self) -> ir.Value:
        """Where the rows' tokens begin, int64 [B, 1]; as the kernel has it, which takes a first
        prompt from zero however long the others of its batch are."""
        graph = self._graph
        counted = count(graph, self.ids, 1)
        lengths = graph.op("ReduceMax", counted, graph.constant([1]), keepdims=1)
        starts = graph.op("Sub", self._ends(), lengths)
        return graph.op("Max", starts, graph.constant([0]))

    def _ends(self) -> ir.Value:
        """Behind each row's last token, [B, 1]."""
        graph = self._graph
        lasts = graph.op("Cast", self._seqlens, to=ir.DataType.INT64)
        ends = graph.op("Add", lasts, graph.constant([1]))
        return graph.op("Unsqueeze", ends, graph.constant([1]))

    def _slots(self, layer: int) -> tuple[int | str, ...]:
        heads = self._shape.heads_of(layer)
        return ("batch", heads.kv_heads, "capacity", heads.head_dim)

    def _width(self, layer: int) -> int:
        """Numbers of a token's keys."""
        heads = self._shape.heads_of(layer)
        return heads.kv_heads * heads.head_dim

    def past(self, part: Part, layer: int, sizes: Sequence[int]) -> ir.Value | None:
        """What a layer with a running state knows before these tokens, in 32 bits."""
        name = f"past_{part}_{self._shape.place(layer)}"
        return self._graph.input(name, ir.DataType.FLOAT, ("batch", *sizes))

    def present(self, part: Part, layer: int, value: ir.Value, sizes: Sequence[int]) -> None:
        """What it knows behind them."""
        name = f"present_{part}_{self._shape.place(layer)}"
        self._graph.output(value, name, ("batch", *sizes))

    def total(self) -> ir.Value:
        """Tokens of the longest row up to its last, int64 [1]."""
        if self._until is None:
            total = self._graph.op("Cast", self._total, to=ir.DataType.INT64)
            self._until = self._graph.op("Unsqueeze", total, self._graph.constant([0]))
        return self._until

    def turn(
        self, layer: int, x: ir.Value, heads: int, width: int, *, interleaved: bool
    ) -> ir.Value:
        """x [B, S, heads * width] by the layer's angles, each token by its position."""
        rope = replace(self._shape.kinds[layer].rope, interleaved=interleaved)
        tables = self._tables[layer]
        return turned(self._graph, x, self.positions(), tables, heads, width, rope)

    def _past(self, layer: int, dtype: ir.DataType) -> list[ir.Value]:
        at, sizes = self._shape.place(layer), self._slots(layer)
        if at not in self._known:
            names = (f"past_{name}_{at}" for name in PAIR)
            self._known[at] = [self._graph.input(name, dtype, sizes) for name in names]
        return self._known[at]

    def _piece(self, layer: int, place: Place, dtype: ir.DataType) -> ir.Value:
        """What the slots hold at `place` of the first tokens, [B, T, all heads]."""
        graph, heads = self._graph, self._shape.kv_heads
        slots = self._past(layer, dtype)[PAIR.index(place.name)]
        first = graph.constant([0, place.first])
        last = graph.op("Concat", self.total(), graph.constant([place.first + place.width]), axis=0)
        piece = graph.op("Slice", slots, first, last, graph.constant([2, 3]))
        piece = graph.op("Transpose", piece, perm=[0, 2, 1, 3])
        return graph.op("Reshape", piece, graph.constant([0, 0, heads * place.width]))

    def _present(self, layer: int, values: Sequence[ir.Value], dtype: ir.DataType) -> None:
        """The slots with what is new. A layer that reads another's writes them a second time."""
        shares = self._shape.kinds[layer].shares
        at = f"{self._shape.place(layer)}{'' if shares is None else f'.{layer}'}"
        for name, value in zip(PAIR, values, strict=True):
            self._graph.output(value, f"present_{name}_{at}", self._slots(layer), dtype)

    def _kernel(
        self,
        layer: int,
        *inputs: ir.Value | None,
        rotate: bool,
        bias: ir.Value | None = None,
        **attributes: Attribute,
    ) -> Sequence[ir.Value]:
        """The attention kernel: attended, present keys, present values."""
        shape, kind = self._shape, self._shape.kinds[layer]
        window = kind.window
        return self._graph.ops(
            "GroupQueryAttention",
            *self._with_sinks(layer, _with(inputs, _BIAS, bias)),
            outputs=3,
            domain=MICROSOFT,
            num_heads=shape.heads,
            kv_num_heads=shape.heads_of(layer).kv_heads,
            do_rotary=int(rotate),
            scale=shape.scale,
            **attributes,
            **({} if window is None else {"local_window_size": window}),
            **({"rotary_interleaved": 1} if rotate and kind.rope.interleaved else {}),
        )

    def _with_sinks(
        self, layer: int, inputs: Sequence[ir.Value | None]
    ) -> Sequence[ir.Value | None]:
        """The kernel's inputs with the layer's sinks at their place."""
        if not self._shape.sinks:
            return inputs
        name = f"{self._shape.root}.layers.{layer}.self_attn.sinks"
        return _with(inputs, _SINKS, self._graph.vector(name, self._shape.heads))


def _with(
    inputs: Sequence[ir.Value | None], at: int, value: ir.Value | None
) -> Sequence[ir.Value | None]:
    """The kernel's inputs with a value at its place, if there is one."""
    if value is None:
        return inputs
    return [*inputs[:at], *[None] * (at - len(inputs)), value, *inputs[at + 1 :]]


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
            made[kind.rope] = _tables(graph, kind.rope, shape.context, len(made))
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


def _tables(graph: GraphBuilder, rope: Rope, context: int, index: int) -> Tables:
    size, magnitude = (context, rope.turned // 2), np.float32(rope.magnitude)

    def table(name: str, function: Callable[..., Float32]) -> ir.Value:
        pieces = (function(a) * magnitude for a in rope.angles(context))
        name = f"rope.{name}" if index == 0 else f"rope.{name}.{index}"
        return graph.parameter(graph.floats(name, size, pieces))

    return table("cosines", np.cos), table("sines", np.sin)


def _declare_rows(graph: GraphBuilder) -> ir.Value:
    """Which rows' logits are wanted, counted through [B, S] as it lies in memory."""
    return graph.input("rows", ir.DataType.INT64, ("rows",))


def choose_rows(graph: GraphBuilder, shape: DecoderShape, x: ir.Value, rows: ir.Value) -> ir.Value:
    """Those of x [B, S, hidden] that `rows` names, [R, hidden]."""
    flat = graph.op("Reshape", x, graph.constant([-1, shape.hidden]))
    return graph.op("Gather", flat, rows, axis=0)


class FloatSlots(_Form):
    """Float slots, extended in place; prompts and decoding in one graph."""

    def __init__(self, graph: GraphBuilder, shape: DecoderShape) -> None:
        super().__init__(graph, shape)
        self._rows = _declare_rows(graph)
        self._tables = self._make_tables()

    def _make_tables(self) -> Sequence[Tables]:
        """The tables of each layer, stored with the weights."""
        return angles(self._graph, self._shape)

    def attend(self, layer: int, heads: Heads, bias: ir.Value | None = None) -> ir.Value:
        heads = self._placed(layer, heads)
        past = self._past(layer, self._graph.dtype)
        lengths = (self._seqlens, self._total)
        attended, *present = self._kernel(
            layer, *heads, *past, *lengths, *self._tables[layer], rotate=True, bias=bias
        )
        self._present(layer, present, self._graph.dtype)
        return attended

    def cached(self, layer: int, place: Place, fresh: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What the cache holds at `place`, and `fresh` as it is."""
        return self._piece(layer, place, self._graph.dtype), fresh

    def choose(self, x: ir.Value) -> ir.Value:
        return choose_rows(self._graph, self._shape, x, self._rows)


class HalfSlots(FloatSlots):
    """Slots of 16-bit floats, for the CUDA provider; selects the likeliest token in the graph."""

    def conclude(self, scores: ir.Value) -> None:
        logits = self._graph.op("Cast", scores, to=ir.DataType.FLOAT)
        super().conclude(logits)
        best = selection.greedy(self._graph, logits)
        self._graph.output(best, "greedy", ("rows",), ir.DataType.INT64)


class _Bytes(_Form):
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
        self._rows = _declare_rows(graph)
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


class _Rotated(_Form):
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
        self._rows = _declare_rows(graph)
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
