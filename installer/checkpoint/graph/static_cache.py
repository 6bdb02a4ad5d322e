"""Attention over a static key-value cache in standard operators: the form for TensorRT.

Owns the inputs and outputs of that graph (docs/bundle-format.md). Positions and the mask follow
from how many tokens each slot holds already, so no mask travels to the device. Which of these
operators TensorRT takes, and in which shape: tests/checkpoint/tensorrt_operators.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph import selection
from installer.checkpoint.graph.angles import angles
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.cached import PAIR, choose_rows
from installer.checkpoint.graph.decoder import Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.sharpening import Sharpener

_HEADS_FIRST = (0, 2, 1, 3)


class StaticCache:
    """Slots of one capacity, written in place: a piece of one prompt, or decoding of many.

    Attributes:
        ids: the tokens, [B, S]; token s of row b has the position starts[b] + s.
    """

    def __init__(self, graph: GraphBuilder, shape: DecoderShape) -> None:
        self._graph = graph
        self._shape = shape
        self.ids = graph.input("input_ids", ir.DataType.INT64, ("batch", "tokens"))
        self._starts = graph.input("starts", ir.DataType.INT64, ("batch",))
        self._rows = graph.input("rows", ir.DataType.INT64, ("rows",))
        self._past = [[self._slot(name, layer) for name in PAIR] for layer in range(shape.layers)]
        self._tables = angles(graph, shape)
        self._positions = self._make_positions()
        self._masks = self._make_masks()
        self._sharpener = Sharpener(graph, shape.context, lambda: self._positions)

    def attend(self, layer: int, heads: Heads) -> ir.Value:
        graph, shape = self._graph, self._shape
        queries = self._sharpener.sharpen(heads[0], shape.kinds[layer].sharpening)
        queries = self._rotate(layer, self._split(queries, shape.heads))
        keys = self._rotate(layer, self._split(heads[1], shape.kv_heads))
        values = self._split(heads[2], shape.kv_heads)
        present = [
            self._extend(name, layer, past, fresh)
            for name, past, fresh in zip(PAIR, self._past[layer], (keys, values), strict=True)
        ]
        mask = self._masks[layer]
        attended = graph.op("Attention", queries, *present, mask, scale=shape.scale)
        merged = graph.op("Transpose", attended, perm=_HEADS_FIRST)
        return graph.op("Reshape", merged, graph.constant([0, 0, shape.heads * shape.head_dim]))

    def choose(self, x: ir.Value) -> ir.Value:
        return choose_rows(self._graph, self._shape, x, self._rows)

    def conclude(self, scores: ir.Value) -> None:
        graph, vocab = self._graph, self._shape.vocab
        logits = graph.op("Cast", scores, to=ir.DataType.FLOAT)
        graph.output(logits, "logits", ("rows", vocab))
        best = selection.greedy(graph, logits)
        graph.output(best, "greedy", ("rows",), ir.DataType.INT64)

    @property
    def _dims(self) -> tuple[int | str, ...]:
        return ("batch", self._shape.kv_heads, "capacity", self._shape.head_dim)

    def _slot(self, name: str, layer: int) -> ir.Value:
        return self._graph.input(f"past_{name}_{layer}", self._graph.dtype, self._dims)

    def _extend(self, name: str, layer: int, past: ir.Value, fresh: ir.Value) -> ir.Value:
        """The slots with the new keys or values at their positions; an output, too."""
        graph = self._graph
        present = graph.op("TensorScatter", past, fresh, self._starts, axis=-2, mode="linear")
        graph.output(present, f"present_{name}_{layer}", self._dims, graph.dtype)
        return present

    def _split(self, x: ir.Value, heads: int) -> ir.Value:
        """[B, S, heads * head_dim] -> [B, heads, S, head_dim]."""
        apart = self._graph.constant([0, 0, heads, self._shape.head_dim])
        return self._graph.op("Transpose", self._graph.op("Reshape", x, apart), perm=_HEADS_FIRST)

    def _rotate(self, layer: int, x: ir.Value) -> ir.Value:
        rope, tables = self._shape.kinds[layer].rope, self._tables[layer]
        how = {} if rope.turned == self._shape.head_dim else {"rotary_embedding_dim": rope.turned}
        if rope.interleaved:
            how["interleaved"] = 1
        return self._graph.op("RotaryEmbedding", x, *tables, self._positions, domain="", **how)

    def _make_positions(self) -> ir.Value:
        """[B, S]: where each token lies in its slot."""
        graph = self._graph
        first = graph.op("Unsqueeze", self._starts, graph.constant([1]))
        return graph.op("Add", first, self._count(self.ids, 1))

    def _make_masks(self) -> Sequence[ir.Value]:
        """For each layer [B, 1, S, C]: a token sees its own position and all before, or so many."""
        graph = self._graph
        own = graph.op("Unsqueeze", self._positions, graph.constant([1, 3]))
        there = self._count(self._past[0][0], 2)
        made: dict[int | None, ir.Value] = {None: graph.op("LessOrEqual", there, own)}
        for kind in self._shape.kinds:
            if kind.window is not None and kind.window not in made:
                first = graph.op("Add", own, graph.constant([1 - kind.window]))
                near = graph.op("LessOrEqual", first, there)
                made[kind.window] = graph.op("And", made[None], near)
        return [made[kind.window] for kind in self._shape.kinds]

    def _count(self, x: ir.Value, axis: int) -> ir.Value:
        """0, 1, ... up to the length of that axis."""
        graph = self._graph
        length = graph.op("Shape", x, start=axis, end=axis + 1)
        zero = graph.array("const.start", np.asarray(0, np.int64))
        one = graph.array("const.next", np.asarray(1, np.int64))
        return graph.op("Range", zero, graph.op("Squeeze", length, graph.constant([0])), one)
