"""DeepSeek-V4's attention: one head of keys that are values, too, of a window and of entries.

Owns one layer's words in a graph: what it keeps of each token (kept.py), how windows become entries
(compressed.py), which of them an index finds, and how heads read both in one softmax with a sink.
What turns stands in front of a head here and behind it in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from installer.checkpoint.families.deepseek_v4_shape import SPARSE, CompressedShape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.compressed import Mean, Windows, joined, ranged
from installer.checkpoint.graph.indexed import BEYOND, shut
from installer.checkpoint.graph.kept import Keeping
from installer.checkpoint.graph.lightning import weigh

_SHUT_OUT = -1e30


def near(graph: GraphBuilder, form: Keeping, window: int) -> tuple[ir.Value, ir.Value]:
    """Where the windows that tokens see stand, [B, n], and what shuts out all else, [B, S, n].

    Of one row they reach from as far as its first token sees to its last token.
    """
    none, positions = graph.constant([0]), form.positions()
    new = graph.op("Shape", positions, start=1, end=2)
    old = graph.op("Sub", form.total(), new)
    old = graph.op("Max", graph.op("Min", old, graph.constant([window - 1])), none)
    counted = ranged(graph, graph.op("Add", old, new))
    there = graph.op("Add", graph.op("Sub", form.starts(), old), counted)
    apart = graph.op(
        "Sub",
        graph.op("Unsqueeze", positions, graph.constant([2])),
        graph.op("Unsqueeze", there, graph.constant([1])),
    )
    within = graph.op("Sub", graph.constant([window - 1]), apart)
    least = graph.op("Min", apart, within, graph.op("Unsqueeze", there, graph.constant([1])))
    seen = graph.op("Greater", least, graph.constant([-1]))
    bias = graph.op("Where", seen, graph.constant([0.0]), graph.constant([_SHUT_OUT]))
    return graph.op("Max", there, none), bias


class Reader:
    """The attention of one layer, whose module is called `at`."""

    def __init__(
        self,
        graph: GraphBuilder,
        shape: CompressedShape,
        form: Keeping,
        layer: int,
        at: str,
        windows: Windows | None,
    ) -> None:
        self._graph, self._shape, self._form = graph, shape, form
        self._layer, self._at, self._windows = layer, at, windows
        self._layout = shape.layout(layer)
        self._turned = shape.decoder.kinds[layer].rope.turned
        self._sparse = shape.kinds[layer] == SPARSE

    def attend(self, x: ir.Value, near: tuple[ir.Value, ir.Value]) -> ir.Value:
        """x [B, S, hidden] -> what the layer adds; `near`: where its window stands, and a bias."""
        graph, shape, own = self._graph, self._shape, self._shape.decoder
        low = graph.linear(x, f"{self._at}.wq_a", own.hidden, shape.queries)
        low = graph.norm(low, f"{self._at}.q_norm.weight", shape.queries, own.epsilon)
        made = {"key": self._key(x), **self._compress(x)}
        slots = self._layout.write(graph, self._form, self._layer, made)
        there, bias = near
        (keys,) = self._layout.read(graph, slots, there, ["key"])
        if self._windows is not None:
            entries, other = self._entries(slots, x, low)
            keys = graph.op("Concat", keys, entries, axis=1)
            bias = graph.op("Concat", bias, other, axis=-1)
        return self._conclude(self._read(self._queries(low), keys, bias))

    def _key(self, x: ir.Value) -> ir.Value:
        """[B, S, head_dim], what turns in front, where the kernel turns it."""
        graph, width, own = self._graph, self._shape.head_dim, self._shape.decoder
        key = graph.linear(x, f"{self._at}.wkv", own.hidden, width)
        names = (f"{self._at}.{name}.weight" for name in ("kv_norm", "norm"))
        gain = graph.tensors.which(*names)
        return self._front(graph.norm(key, gain, width, own.epsilon), 1, width)

    def _queries(self, low: ir.Value) -> ir.Value:
        """[B, S * heads, head_dim], so long that products need no factor."""
        graph, shape, width = self._graph, self._shape, self._shape.head_dim
        total = shape.heads * width
        queries = graph.linear(low, f"{self._at}.wq_b", shape.queries, total)
        queries = graph.norm_heads_plainly(queries, shape.heads, width, shape.decoder.epsilon)
        queries = self._turn(self._front(queries, shape.heads, width), shape.heads, width)
        queries = graph.divide(queries, width**0.5)
        return graph.op("Reshape", queries, graph.constant([0, -1, width]))

    def _read(self, queries: ir.Value, keys: ir.Value, bias: ir.Value) -> ir.Value:
        """What heads read of keys [B, n, head_dim], which are values, too: [B, S, heads *
        head_dim]. `bias` [B, S, n] is added to products; each head has a sink."""
        graph, heads, width = self._graph, self._shape.heads, self._shape.head_dim
        products = graph.op("MatMul", queries, graph.op("Transpose", keys, perm=[0, 2, 1]))
        rows = graph.op("Shape", bias, start=0, end=2)
        count = graph.op("Shape", bias, start=2, end=3)
        of_heads = graph.constant([heads])
        apart = graph.op("Concat", rows, of_heads, count, axis=0)
        products = graph.op("Reshape", products, apart)
        products = graph.op("Add", products, graph.op("Unsqueeze", bias, graph.constant([2])))
        sinks = graph.vector(f"{self._at}.attn_sink", heads)
        one = graph.constant([1])
        sinks = graph.op("Reshape", sinks, graph.constant([1, 1, heads, 1]))
        sinks = graph.op("Expand", sinks, graph.op("Concat", rows, of_heads, one, axis=0))
        shares = graph.op("Softmax", graph.op("Concat", products, sinks, axis=-1), axis=-1)
        shares = graph.op("Slice", shares, graph.constant([0]), count, graph.constant([3]))
        flat = graph.op("Concat", graph.op("Shape", queries, start=0, end=2), count, axis=0)
        read = graph.op("MatMul", graph.op("Reshape", shares, flat), keys)
        whole = graph.op("Concat", rows, graph.constant([heads * width]), axis=0)
        return graph.op("Reshape", read, whole)

    def _conclude(self, read: ir.Value) -> ir.Value:
        """[B, S, heads * head_dim] -> [B, S, hidden]: turned back, and projected in groups."""
        graph, shape = self._graph, self._shape
        heads, groups, rank = shape.heads, shape.groups, shape.group_rank
        inner = heads * shape.head_dim // groups
        read = self._back(self._turned_back(read), heads, shape.head_dim)
        parts = graph.ops("Split", read, graph.constant([inner] * groups), outputs=groups, axis=-1)
        names = [f"{self._at}.wo_a.{group}" for group in range(groups)]
        graph.tensors.divide(f"{self._at}.wo_a.weight", {f"{name}.weight": rank for name in names})
        low = [
            graph.linear(part, name, inner, rank) for part, name in zip(parts, names, strict=True)
        ]
        hidden = shape.decoder.hidden
        return graph.linear(joined(graph, low), f"{self._at}.wo_b", groups * rank, hidden)

    def _turned_back(self, read: ir.Value) -> ir.Value:
        """By the angles of the position, the other way: with the second of each pair negated."""
        graph, heads, width = self._graph, self._shape.heads, self._shape.head_dim
        signs = np.ones(width, np.float32)
        signs[1 : self._turned : 2] = -1
        negated = graph.array(f"const.signs.{heads}", np.tile(signs, heads))
        turned = self._turn(graph.op("Mul", read, negated), heads, width)
        return graph.op("Mul", turned, negated)

    def _compress(self, x: ir.Value) -> dict[str, ir.Value]:
        """Of each token, what its slot holds of windows, by the fields' names."""
        if self._windows is None:
            return {}
        graph, windows, names = self._graph, self._windows, [n for n, _ in self._layout.fields[1:]]
        known = self._layout.read(graph, self._form.known(self._layer), windows.known, names)
        before = [Mean(*known[at : at + 2]) for at in range(0, len(known), 2)]
        fresh, made = self._fresh(x), list[ir.Value]()
        if self._sparse:
            following = windows.run(before[0], fresh[0])
            made.extend(windows.new(following))
            fresh[1] = windows.carry(following, fresh[1])
        running = windows.new(windows.run(before[-1], fresh[-1]))
        made += [running.sums, windows.closed(self._finished(running.means), running.means)]
        return dict(zip(names, made, strict=True))

    def _fresh(self, x: ir.Value) -> list[Mean]:
        """Of single tokens, gates and values: of what the next window takes, if it does, and of
        their own; of entries, and behind them of the keys that an index has."""
        graph, windows, hidden = self._graph, self._windows, self._shape.decoder.hidden
        assert windows is not None
        modules, widths = [f"{self._at}.compressor"], [self._shape.head_dim]
        if self._sparse:
            modules.append(f"{self._at}.indexer.compressor")
            widths.append(self._shape.index.width)
        series = 2 if self._sparse else 1
        parts: list[list[list[ir.Value]]] = [[[], []] for _ in range(series)]
        for module, width in zip(modules, widths, strict=True):
            total = series * width
            gates = graph.linear(x, f"{module}.wgate", hidden, total)
            gates = windows.weigh(gates, f"{module}.ape", total)
            values = graph.linear(x, f"{module}.wkv", hidden, total)
            for end, whole in enumerate((gates, values)):
                cut = [whole]
                if series > 1:
                    sizes = graph.constant([width] * series)
                    cut = list(graph.ops("Split", whole, sizes, outputs=series, axis=-1))
                for at, part in enumerate(cut):
                    parts[at][end].append(part)
        return [Mean(joined(graph, gates), joined(graph, values)) for gates, values in parts]

    def _finished(self, means: ir.Value) -> ir.Value:
        """What entries are made of means, and keys of an index: normed, and turned as if they stood
        where their windows begin."""
        graph, shape, windows = self._graph, self._shape, self._windows
        assert windows is not None
        parts, names, widths = [means], [f"{self._at}.compressor"], [shape.head_dim]
        if self._sparse:
            names.append(f"{self._at}.indexer.compressor")
            widths.append(shape.index.width)
            parts = list(graph.ops("Split", means, graph.constant(widths), outputs=2, axis=-1))
        finished = []
        for part, name, width in zip(parts, names, widths, strict=True):
            normed = graph.norm(part, f"{name}.norm.weight", width, shape.decoder.epsilon)
            front = self._front(normed, 1, width)
            finished.append(self._turn(front, 1, width, windows.firsts))
        return joined(graph, finished)

    def _entries(
        self, slots: Sequence[ir.Value], x: ir.Value, low: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Entries of windows [B, n, head_dim], and what shuts out those that are not read, [B, S,
        n]."""
        graph, shape, windows = self._graph, self._shape, self._windows
        assert windows is not None
        (entries,) = self._layout.read(graph, slots, windows.ends, ["means"])
        nothing, closed = graph.constant([0.0]), graph.constant([_SHUT_OUT])
        if not self._sparse:
            return entries, graph.op("Where", windows.beyond, closed, nothing)
        sizes = graph.constant([shape.head_dim, shape.index.width])
        entries, keys = graph.ops("Split", entries, sizes, outputs=2, axis=-1)
        return entries, graph.op("Where", windows.beyond, closed, self._find(x, low, keys))

    def _find(self, x: ir.Value, low: ir.Value, keys: ir.Value) -> ir.Value:
        """What shuts out all entries but those with the best scores by `keys` [B, n, width]."""
        graph, index, windows, at = self._graph, self._shape.index, self._windows, self._at
        assert windows is not None
        total = index.heads * index.width
        queries = graph.linear(low, f"{at}.indexer.wq_b", self._shape.queries, total)
        queries = self._front(queries, index.heads, index.width)
        queries = self._turn(queries, index.heads, index.width)
        name = f"{at}.indexer.weights_proj"
        weights = weigh(graph, x, name, self._shape.decoder.hidden, index.heads)
        scores = index.score(graph, queries, keys, weights)
        scores = graph.op("Where", windows.beyond, graph.constant([BEYOND]), scores)
        most = graph.op("Min", windows.count, graph.constant([index.chosen]))
        _, found = graph.ops("TopK", scores, most, outputs=2, axis=-1)
        return shut(graph, scores, found)

    def _turn(
        self, x: ir.Value, heads: int, width: int, positions: ir.Value | None = None
    ) -> ir.Value:
        turn = partial(self._form.turn, interleaved=True, positions=positions)
        return turn(self._layer, x, heads, width)

    def _front(self, x: ir.Value, heads: int, width: int) -> ir.Value:
        """Heads of x [B, S, heads * width], whose last numbers turn, with these in front."""
        return self._swapped(x, heads, width, width - self._turned)

    def _back(self, x: ir.Value, heads: int, width: int) -> ir.Value:
        """Heads whose first numbers were turned, with these behind."""
        return self._swapped(x, heads, width, self._turned)

    def _swapped(self, x: ir.Value, heads: int, width: int, first: int) -> ir.Value:
        """Of each head the `first` numbers behind the rest."""
        graph = self._graph
        apart = graph.op("Reshape", x, graph.constant([0, 0, heads, width]))
        sizes = graph.constant([first, width - first])
        one, other = graph.ops("Split", apart, sizes, outputs=2, axis=-1)
        whole = graph.op("Concat", other, one, axis=-1)
        return graph.op("Reshape", whole, graph.constant([0, 0, heads * width]))
