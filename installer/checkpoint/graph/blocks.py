"""MiniMax's index: heads of its own score every token, and attention reads the best blocks of them.

Owns its numbers and its words in a graph. A block is as good as its best token is for a head of the
index; each such head finds blocks for as many heads of attention. Those nearest before a token are
read always. Only the order of scores counts, so no factor is in them. MiniMax-M3 (2026).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.indexed import BEYOND, Place, Search, behind, shut

_ALWAYS = 1e30
"""The score of a block that is read always."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Attributes:
    heads: of the index.
    width: of one of them, and of an index key.
    size: tokens of a block.
    chosen: blocks that a query reads.
    near: blocks that it reads always, its own among them.
    """

    heads: int
    width: int
    size: int
    chosen: int
    near: int

    def places(self, kv_heads: int, head_dim: int) -> tuple[Place, Place]:
        """Half of a key behind the keys of `kv_heads` heads of `head_dim`, half behind values."""
        return behind(kv_heads, head_dim, self.width)

    def find(
        self,
        graph: GraphBuilder,
        search: Search,
        queries: ir.Value,
        keys: ir.Value,
        heads: int,
    ) -> ir.Value:
        """What shuts all but the found blocks out, a bias [B, heads, S, T].

        queries: [B, S, heads of the index * width]; keys: of all tokens, [B, T, width].
        """
        apart = graph.op("Reshape", queries, graph.constant([0, 0, self.heads, self.width]))
        apart = graph.op("Transpose", apart, perm=[0, 2, 1, 3])
        keys = graph.op("Transpose", keys, perm=[0, 2, 1])
        scores = graph.op("MatMul", apart, graph.op("Unsqueeze", keys, graph.constant([1])))
        scores = self._of_blocks(graph, search, graph.full(scores))
        most = graph.op("Min", self._count(graph, search), graph.constant([self.chosen]))
        _, found = graph.ops("TopK", scores, most, outputs=2, axis=-1)
        return self._of_heads(graph, search, shut(graph, scores, found), heads)

    def _of_blocks(self, graph: GraphBuilder, search: Search, scores: ir.Value) -> ir.Value:
        """Of tokens [B, heads, S, T] -> of blocks [B, heads, S, T / size]."""
        beyond = graph.op("Unsqueeze", search.beyond, graph.constant([1]))
        scores = graph.op("Where", beyond, graph.constant([BEYOND]), scores)
        before = graph.op("Shape", scores, start=0, end=3)
        missing = graph.op("Concat", before, self._missing(graph, search), axis=0)
        filled = graph.op("Expand", graph.constant([BEYOND]), missing)
        scores = graph.op("Concat", scores, filled, axis=-1)
        sizes = graph.op("Concat", before, graph.constant([-1, self.size]), axis=0)
        scores = graph.op("Reshape", scores, sizes)
        best = graph.op("ReduceMax", scores, graph.constant([-1]), keepdims=0)
        return graph.op("Where", self._near(graph, search), graph.constant([_ALWAYS]), best)

    def _missing(self, graph: GraphBuilder, search: Search) -> ir.Value:
        """Tokens that the last block lacks, [1]."""
        return graph.op("Sub", self._whole(graph, search), search.total)

    def _whole(self, graph: GraphBuilder, search: Search) -> ir.Value:
        """Tokens of all blocks, [1]."""
        return graph.op("Mul", self._count(graph, search), graph.constant([self.size]))

    def _count(self, graph: GraphBuilder, search: Search) -> ir.Value:
        """Blocks, [1]."""
        more = graph.op("Add", search.total, graph.constant([self.size - 1]))
        return graph.op("Div", more, graph.constant([self.size]))

    def _near(self, graph: GraphBuilder, search: Search) -> ir.Value:
        """Whether a token reads a block always, [B, 1, S, blocks]."""
        firsts = graph.op(
            "Slice",
            *(search.there, graph.constant([0]), search.total),
            *(graph.constant([0]), graph.constant([self.size])),
        )
        blocks = graph.op("Div", firsts, graph.constant([self.size]))
        own = graph.op("Div", search.positions, graph.constant([self.size]))
        own = graph.op("Unsqueeze", own, graph.constant([1, 3]))
        behind = graph.op("Sub", own, blocks)
        # Above zero for all but those from 0 to near - 1.
        inside = graph.op("Mul", behind, graph.op("Sub", behind, graph.constant([self.near - 1])))
        return graph.op("Greater", graph.constant([1]), inside)

    def _of_heads(
        self, graph: GraphBuilder, search: Search, bias: ir.Value, heads: int
    ) -> ir.Value:
        """Of blocks, for heads of the index -> of tokens, for `heads` of attention."""
        last = graph.constant([-1])
        of_tokens = graph.op("Unsqueeze", bias, last)
        rows = graph.op("Shape", bias)
        sizes = graph.op("Concat", rows, graph.constant([self.size]), axis=0)
        of_tokens = graph.op("Expand", of_tokens, sizes)
        of_tokens = graph.op("Reshape", of_tokens, graph.constant([0, 0, 0, -1]))
        ends = graph.constant([0]), search.total, graph.constant([3])
        of_tokens = graph.op("Slice", of_tokens, *ends)
        group = heads // self.heads
        apart = graph.op("Unsqueeze", of_tokens, graph.constant([2]))
        repeated = graph.op("Concat", *[apart] * group, axis=2)
        first, rest = (graph.op("Shape", of_tokens, start=a, end=b) for a, b in ((0, 1), (2, 4)))
        sizes = graph.op("Concat", first, graph.constant([heads]), rest, axis=0)
        return graph.op("Reshape", repeated, sizes)
