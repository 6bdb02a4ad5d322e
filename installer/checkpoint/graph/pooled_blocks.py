"""Qwen's index: heads of its own score short blocks of tokens by the mean of their keys.

Owns its numbers and its words in a graph. A block's key is the mean of its tokens' keys, normed and
turned as its first token; a block is scored once a query sees all of it. Attention reads the blocks
that score most, and of the block that is not whole yet what there is. A score is the sum, over the
index's heads, of what is positive of query times key; only its order counts, so no factor is in it.

Reference: `Qwen4ExpTextQSAIndexer` (2026).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from installer.checkpoint.graph import decoder
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.indexed import BEYOND, Search, Searchable, shut


@dataclass(frozen=True, slots=True)
class PooledBlocks:
    """Attributes:
    heads: of the index.
    width: of one of them, and of an index key.
    size: tokens of a block.
    chosen: blocks that a query reads.
    """

    heads: int
    width: int
    size: int
    chosen: int


class PooledSearch:
    """What one layer's queries find."""

    def __init__(
        self, graph: GraphBuilder, shape: DecoderShape, index: PooledBlocks, search: Search
    ) -> None:
        """`shape`: with heads as wide as the index's."""
        self._graph = graph
        self._shape = shape
        self._index = index
        self._search = search

    def find(
        self, form: Searchable, layer: int, at: str, queries: ir.Value, keys: ir.Value
    ) -> ir.Value:
        """What shuts all but the found tokens out, a bias [B, 1, S, T].

        queries: [B, S, heads of the index * width], turned; keys: of all tokens, [B, T, width], as
        they were made; `at`: the index's module.
        """
        graph, index = self._graph, self._index
        apart = graph.op("Reshape", queries, graph.constant([0, 0, index.heads, index.width]))
        apart = graph.op("Transpose", apart, perm=[0, 2, 1, 3])
        pooled = graph.op("Transpose", self._pooled(form, layer, at, keys), perm=[0, 2, 1])
        pooled = graph.op("Unsqueeze", pooled, graph.constant([1]))
        positive = graph.op("Relu", graph.op("MatMul", apart, pooled))
        scores = graph.op("ReduceSum", positive, graph.constant([1]), keepdims=0)
        return self._of_tokens(self._shut(scores))

    def _pooled(self, form: Searchable, layer: int, at: str, keys: ir.Value) -> ir.Value:
        """The blocks' keys, [B, blocks, width]."""
        graph, index = self._graph, self._index
        rows = graph.op("Shape", keys, start=0, end=1)
        last = graph.constant([index.width])
        missing = graph.op("Sub", self._whole(), self._search.total)
        filled = graph.op("Concat", rows, missing, last, axis=0)
        filled = graph.op("Expand", graph.constant([0.0]), filled)
        whole = graph.op("Concat", keys, filled, axis=1)
        sizes = graph.op("Concat", graph.constant([0, -1, index.size]), last, axis=0)
        total = graph.op(
            "ReduceSum", graph.op("Reshape", whole, sizes), graph.constant([2]), keepdims=0
        )
        mean = graph.divide(total, index.size)
        mean = decoder.head_norm(graph, self._shape, f"{at}.k_layernorm", mean, 1)
        blocks = graph.op("Concat", rows, self._count(), axis=0)
        places = graph.op("Expand", self._firsts(), blocks)
        return form.turn(layer, mean, 1, index.width, interleaved=False, positions=places)

    def _shut(self, scores: ir.Value) -> ir.Value:
        """Of blocks, scored [B, S, blocks]: what is added to the products of their tokens."""
        graph, index, search = self._graph, self._index, self._search
        own = graph.op("Unsqueeze", search.positions, graph.constant([2]))
        lasts = graph.op("Add", self._firsts(), graph.constant([index.size - 1]))
        scores = graph.op(
            "Where", graph.op("Greater", lasts, own), graph.constant([BEYOND]), scores
        )
        most = graph.op("Min", self._count(), graph.constant([index.chosen]))
        _, found = graph.ops("TopK", scores, most, outputs=2, axis=-1)
        bias = shut(graph, scores, found)
        # Of the block that is not whole yet, all that a query sees.
        started = graph.op(
            "Div", graph.op("Add", own, graph.constant([1])), graph.constant([index.size])
        )
        blocks = graph.op("Div", self._firsts(), graph.constant([index.size]))
        behind = graph.op("Sub", started, blocks)
        at_end = graph.op("Greater", graph.constant([1]), graph.op("Mul", behind, behind))
        return graph.op("Where", at_end, graph.constant([0.0]), bias)

    def _of_tokens(self, bias: ir.Value) -> ir.Value:
        """Of blocks [B, S, blocks] -> of their tokens, for all heads, [B, 1, S, T]."""
        graph, index = self._graph, self._index
        each = graph.op("Concat", graph.op("Shape", bias), graph.constant([index.size]), axis=0)
        spread = graph.op("Expand", graph.op("Unsqueeze", bias, graph.constant([-1])), each)
        spread = graph.op("Reshape", spread, graph.constant([0, 0, -1]))
        ends = graph.constant([0]), self._search.total, graph.constant([2])
        return graph.op("Unsqueeze", graph.op("Slice", spread, *ends), graph.constant([1]))

    def _firsts(self) -> ir.Value:
        """Where blocks begin, int64 [blocks]."""
        graph, search = self._graph, self._search
        zero, size = graph.constant([0]), graph.constant([self._index.size])
        return graph.op("Slice", search.there, zero, search.total, zero, size)

    def _whole(self) -> ir.Value:
        """Tokens of all blocks, [1]."""
        return self._graph.op("Mul", self._count(), self._graph.constant([self._index.size]))

    def _count(self) -> ir.Value:
        """Blocks, [1]."""
        size = self._index.size
        more = self._graph.op("Add", self._search.total, self._graph.constant([size - 1]))
        return self._graph.op("Div", more, self._graph.constant([size]))
