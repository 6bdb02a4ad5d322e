"""What all forms of attention over the cache have in common.

Owns the inputs and outputs that every decoder graph has (docs/bundle-format.md) and the call of the
kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from installer.checkpoint.graph.angles import Tables, tables_of, turned
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.chunks import Marker
from installer.checkpoint.graph.decoder import Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.indexed import Place
from installer.checkpoint.graph.operators import MICROSOFT, Attribute
from installer.checkpoint.graph.recurrent import Part
from installer.checkpoint.graph.rope import Rope
from installer.checkpoint.graph.sharpening import Sharpener, count, positions_from

PAIR = ("key", "value")
_BIAS, _SINKS = 10, 11
"""Which of the kernel's inputs they are."""


class Cached:
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
        self._early: dict[Rope, Tables] = {}
        """Of angles by which families turn themselves."""
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
        name = f"past_{part}_{self._shape.state_place(part, layer)}"
        return self._graph.input(name, ir.DataType.FLOAT, ("batch", *sizes))

    def present(self, part: Part, layer: int, value: ir.Value, sizes: Sequence[int]) -> None:
        """What it knows behind them."""
        name = f"present_{part}_{self._shape.state_place(part, layer)}"
        self._graph.output(value, name, ("batch", *sizes))

    def total(self) -> ir.Value:
        """Tokens of the longest row up to its last, int64 [1]."""
        if self._until is None:
            total = self._graph.op("Cast", self._total, to=ir.DataType.INT64)
            self._until = self._graph.op("Unsqueeze", total, self._graph.constant([0]))
        return self._until

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
        """x [B, S, heads * width] by the layer's angles, each token by its position, or as if it
        were at another of `positions` [B, S]."""
        kind = self._shape.kinds[layer]
        tables = self._tables[layer] if kind.early is None else self._early_tables(kind.early)
        rope = replace(kind.early or kind.rope, interleaved=interleaved)
        positions = self.positions() if positions is None else positions
        return turned(self._graph, x, positions, tables, heads, width, rope)

    def _early_tables(self, rope: Rope) -> Tables:
        if rope not in self._early:
            others = len({kind.rope for kind in self._shape.kinds}) + len(self._early)
            self._early[rope] = tables_of(self._graph, rope, self._shape.context, others)
        return self._early[rope]

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


def declare_rows(graph: GraphBuilder) -> ir.Value:
    """Which rows' logits are wanted, counted through [B, S] as it lies in memory."""
    return graph.input("rows", ir.DataType.INT64, ("rows",))


def choose_rows(graph: GraphBuilder, shape: DecoderShape, x: ir.Value, rows: ir.Value) -> ir.Value:
    """Those of x [B, S, hidden] that `rows` names, [R, hidden]."""
    flat = graph.op("Reshape", x, graph.constant([-1, shape.hidden]))
    return graph.op("Gather", flat, rows, axis=0)
