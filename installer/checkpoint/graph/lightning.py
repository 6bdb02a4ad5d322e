"""DeepSeek's index: heads of its own score every token, and attention reads those that score most.

Owns its numbers, its words in a graph and the latent attention around it. A token's score is, over
the index's heads, the sum of what is positive of query times key, weighed by numbers that are made
of the querying token. Scores are in 32 bits, as are the weights, in every grade. Only their order
counts, so factors that all have are left out. DeepSeek-V3.2 (2025), 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Attention
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.indexed import Place, Search, Searchable
from installer.checkpoint.graph.latent import Latent

_EPSILON = 1e-6
_TOGETHER = 16
"""Heads that are scored at a time: of a long prompt, one table of products for each."""


@dataclass(frozen=True, slots=True)
class Lightning:
    """Attributes:
    heads: of the index.
    width: of one of them, and of an index key.
    chosen: tokens that a query reads.
    interleaved: whether neighbours turn together in it.
    shared: layers that read what was found for the layer before them.
    """

    heads: int
    width: int
    chosen: int
    interleaved: bool
    shared: frozenset[int] = frozenset()

    def score(
        self, graph: GraphBuilder, queries: ir.Value, keys: ir.Value, weights: ir.Value
    ) -> ir.Value:
        """Of all keys [B, T, width] for each query, [B, S, T], some heads after the others.

        queries: [B, S, heads * width]; weights: of their heads, [B, S, 1, heads].
        """
        apart = graph.op("Reshape", queries, graph.constant([0, 0, self.heads, self.width]))
        keys = graph.op("Transpose", keys, perm=[0, 2, 1])
        keys = graph.op("Unsqueeze", keys, graph.constant([1]))
        scores: ir.Value | None = None
        for some, weight in zip(
            _cut(graph, apart, 2, self.heads), _cut(graph, weights, 3, self.heads), strict=True
        ):
            positive = graph.op("Relu", graph.op("MatMul", some, keys))
            weighed = graph.op("MatMul", weight, graph.full(positive))
            scores = weighed if scores is None else graph.op("Add", scores, weighed)
        assert scores is not None
        return graph.op("Squeeze", scores, graph.constant([2]))


class LatentSearch:
    """The attention of one graph."""

    def __init__(self, latent: Latent, index: Lightning) -> None:
        self._latent = latent
        self._index = index
        self._search: Search | None = None
        self.bias: ir.Value | None = None
        """Of the last layer that looked for tokens."""

    def mix(
        self,
        graph: GraphBuilder,
        shape: DecoderShape,
        attention: Attention,
        layer: int,
        at: str,
        x: ir.Value,
    ) -> ir.Value:
        """x [B, S, hidden] -> what the layer's attention adds to the stream."""
        assert isinstance(attention, Searchable)
        low = self._latent.lowered(graph, shape, at, x)
        assert low is not None
        fresh = self.look(graph, shape, attention, layer, at, (x, low))
        heads = self._latent.project_from(graph, shape, at, x, low, fresh)
        attended = attention.attend(layer, heads, self.bias)
        return self._latent.conclude(graph, shape, at, attended)

    def look(
        self,
        graph: GraphBuilder,
        shape: DecoderShape,
        form: Searchable,
        layer: int,
        at: str,
        made: tuple[ir.Value, ir.Value],
    ) -> ir.Value | None:
        """Find tokens for a layer, if it has an index, and give the keys by which later tokens find
        these, [B, S, width]; `made`: x, and what queries are made of."""
        if layer in self._index.shared:
            return None
        fresh = self._key(graph, shape, form, layer, at, made[0])
        self.bias = self._find(graph, shape, form, layer, at, (*made, fresh))
        return fresh

    def _key(
        self,
        graph: GraphBuilder,
        shape: DecoderShape,
        form: Searchable,
        layer: int,
        at: str,
        x: ir.Value,
    ) -> ir.Value:
        """By which later tokens find these, [B, S, width]."""
        width, at = self._index.width, f"{at}.self_attn.indexer"
        key = graph.linear(x, f"{at}.wk", shape.hidden, width)
        epsilon = _EPSILON / shape.divisors(graph).into_attention ** 2
        key = graph.layer_norm(key, f"{at}.k_norm", width, epsilon)
        return form.turn(layer, key, 1, width, interleaved=self._index.interleaved)

    def _find(
        self,
        graph: GraphBuilder,
        shape: DecoderShape,
        form: Searchable,
        layer: int,
        at: str,
        made: tuple[ir.Value, ir.Value, ir.Value],
    ) -> ir.Value:
        """A bias that shuts out what no head finds; `made`: x, what queries are made of, keys."""
        index, at = self._index, f"{at}.self_attn.indexer"
        x, low, fresh = made
        if self._search is None:
            self._search = Search(graph, form, (Place("value", 0, index.width),))
        queries = self._asked(graph, shape, form, at, low)
        queries = form.turn(layer, queries, index.heads, index.width, interleaved=index.interleaved)
        keys = self._search.recall(layer, fresh, shape.kv_heads)
        weights = weigh(graph, x, f"{at}.weights_proj", shape.hidden, index.heads)
        return self._search.shut_out(index.score(graph, queries, keys, weights), index.chosen)

    def _asked(
        self, graph: GraphBuilder, shape: DecoderShape, form: Searchable, at: str, low: ir.Value
    ) -> ir.Value:
        """Queries of the index `at`, not turned yet, [B, S, heads * width]."""
        assert self._latent.queries is not None
        return self._made_of(graph, at, low, self._latent.queries)

    def _made_of(self, graph: GraphBuilder, at: str, low: ir.Value, width: int) -> ir.Value:
        index = self._index
        queries = graph.linear(low, f"{at}.wq_b", width, index.heads * index.width)
        return graph.divide(queries, sqrt(index.width))


def weigh(graph: GraphBuilder, x: ir.Value, name: str, hidden: int, heads: int) -> ir.Value:
    """What each head's score weighs, [B, S, 1, heads], in 32 bits."""
    weights = graph.linear_in_full(x, name, hidden, heads)
    return graph.op("Unsqueeze", weights, graph.constant([2]))


def _cut(graph: GraphBuilder, x: ir.Value, axis: int, heads: int) -> Sequence[ir.Value]:
    """Along the axis of its heads in parts of as many as are scored at a time."""
    sizes = [min(_TOGETHER, heads - first) for first in range(0, heads, _TOGETHER)]
    if len(sizes) == 1:
        return [x]
    return graph.ops("Split", x, graph.constant(sizes), outputs=len(sizes), axis=axis)
