"""Multi-head latent attention: all heads read one vector a token, from which each makes its own.

Owns its words in a graph. The cache holds the latent itself, in front of it the part of the key
that is turned, as one key head: for DeepSeek-V3 1,152 numbers a token and layer where expanded
heads would take 49,152. What would expand it is multiplied into queries and results instead
(docs/decisions/0181-the-latent-is-the-cache.md). DeepSeek-V2 (2024), 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.quantize import Float32

_HEADS_FIRST = (1, 0, 2)


@dataclass(frozen=True, slots=True)
class Latent:
    """The widths of one head and of what all share.

    Attributes:
        queries: of the vector that queries are made of; None if they are made of the token.
        rank: of the vector that keys and values are made of.
        turned: of the part of queries and keys that positions turn.
        plain: of the rest of them.
        values: of a head's values.
        index: of a key by which tokens are found, which stands in front of the latent in values
            (lightning.py); 0: there are none.
        epsilon: of the norms of latents, mostly whatever the other norms have.
    """

    queries: int | None
    rank: int
    turned: int
    plain: int
    values: int
    index: int = 0
    epsilon: float = 1e-6

    @property
    def before(self) -> int:
        """Numbers in front of the latent in the cache: of keys the turned part, then zeros."""
        return max(self.turned, self.index)

    @property
    def head_dim(self) -> int:
        """Of the one key head in the cache."""
        return self.before + self.rank

    def project(self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
        """x [B, S, hidden] -> queries [B, S, heads * head_dim], keys and values [B, S, head_dim].

        Values are the keys: what a head reads of the turned part is multiplied by zeros.
        """
        return self.project_from(graph, shape, at, x, self.lowered(graph, shape, at, x))

    def project_from(
        self,
        graph: GraphBuilder,
        shape: DecoderShape,
        at: str,
        x: ir.Value,
        low: ir.Value | None,
        index: ir.Value | None = None,
    ) -> Heads:
        """`project` with what queries are made of, and with a key for `index` [B, S, index], which
        values hold where keys have the turned part."""
        keys, latent = self.compressed(graph, shape, at, x)
        return self.queries_of(graph, shape, at, x, low), keys, beside(graph, keys, latent, index)

    def compressed(
        self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Keys [B, S, head_dim], and the latent behind them [B, S, rank]."""
        at, width = f"{at}.self_attn", self.rank + self.turned
        latent = graph.linear(x, f"{at}.kv_a_proj_with_mqa", shape.hidden, width)
        turned = None
        if self.turned:
            sizes = graph.constant([self.rank, self.turned])
            latent, turned = graph.ops("Split", latent, sizes, outputs=2, axis=-1)
        latent = graph.norm(latent, f"{at}.kv_a_layernorm.weight", self.rank, self.epsilon)
        return graph.op("Concat", self._before(graph, turned, latent), latent, axis=-1), latent

    def lowered(
        self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value
    ) -> ir.Value | None:
        """The vector that queries are made of; None if that is the token."""
        if self.queries is None:
            return None
        low = graph.linear(x, f"{at}.self_attn.q_a_proj", shape.hidden, self.queries)
        return graph.norm(low, f"{at}.self_attn.q_a_layernorm.weight", self.queries, self.epsilon)

    def conclude(
        self, graph: GraphBuilder, shape: DecoderShape, at: str, attended: ir.Value
    ) -> ir.Value:
        """What heads read of latents, [B, S, heads * head_dim] -> [B, S, hidden]."""
        at = f"{at}.self_attn"
        heads, width = shape.heads, shape.heads * self.values
        read = _apart(graph, attended, heads, self.head_dim)
        values = graph.op("MatMul", self._heads_first(graph, read), self._values(graph, heads, at))
        merged = _together(graph, self._heads_first(graph, values), attended, width)
        merged = graph.divide(merged, shape.divisors(graph).out_of_attention)
        return graph.linear(merged, f"{at}.o_proj", width, shape.hidden)

    def queries_of(
        self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value, low: ir.Value | None
    ) -> ir.Value:
        """[B, S, heads * head_dim], made of `low`, or of x where that is None."""
        at = f"{at}.self_attn"
        heads, width = shape.heads, shape.heads * (self.plain + self.turned)
        if low is None:
            queries = graph.linear(x, f"{at}.q_proj", shape.hidden, width)
        else:
            assert self.queries is not None
            queries = graph.linear(low, f"{at}.q_b_proj", self.queries, width)
        plain, turned = _apart(graph, queries, heads, self.plain + self.turned), None
        if self.turned:
            sizes = graph.constant([self.plain, self.turned])
            plain, turned = graph.ops("Split", plain, sizes, outputs=2, axis=-1)
        read = graph.op("MatMul", self._heads_first(graph, plain), self._keys(graph, heads, at))
        read = self._heads_first(graph, read)
        whole = graph.op("Concat", self._before(graph, turned, read), read, axis=-1)
        return _together(graph, whole, x, heads * self.head_dim)

    def _keys(self, graph: GraphBuilder, heads: int, at: str) -> ir.Value:
        """[heads, plain, rank]: a query for a head's plain keys -> one for the latent."""
        pieces = (both[:, : self.plain] for both in self._expansion(graph, heads, at))
        shape = (heads, self.plain, self.rank)
        return graph.parameter(graph.stored(f"{at}.kv_b_proj.keys", shape, pieces))

    def _values(self, graph: GraphBuilder, heads: int, at: str) -> ir.Value:
        """[heads, head_dim, values]: what a head read of keys in the cache -> its values."""
        nothing = ((0, 0), (self.before, 0), (0, 0))
        pieces = (
            np.ascontiguousarray(np.pad(both[:, self.plain :].transpose(0, 2, 1), nothing))
            for both in self._expansion(graph, heads, at)
        )
        shape = (heads, self.head_dim, self.values)
        return graph.parameter(graph.stored(f"{at}.kv_b_proj.values", shape, pieces))

    def _expansion(self, graph: GraphBuilder, heads: int, at: str) -> Iterator[Float32]:
        """Rows of plain keys and of values of some heads at a time, [n, plain + values, rank]."""
        unit, weight = self.plain + self.values, f"{at}.kv_b_proj.weight"
        graph.tensors.expect(weight, (heads * unit, self.rank))
        runs = graph.tensors.rows(weight, unit=unit)
        return (run.reshape(-1, unit, self.rank) for run in runs)

    def _before(self, graph: GraphBuilder, turned: ir.Value | None, latent: ir.Value) -> ir.Value:
        """The turned part [a, b, turned], if there is one, with zeros up to where the `latent`
        [a, b, any] begins."""
        if self.before == self.turned:
            assert turned is not None
            return turned
        rest = graph.constant([self.before - self.turned])
        sizes = graph.op("Concat", graph.op("Shape", latent, start=0, end=2), rest, axis=0)
        zeros = graph.op("Expand", graph.parameter(graph.constant([0.0])), sizes)
        return zeros if turned is None else graph.op("Concat", turned, zeros, axis=-1)

    def _heads_first(self, graph: GraphBuilder, x: ir.Value) -> ir.Value:
        """[tokens, heads, n] -> [heads, tokens, n], and back."""
        return graph.op("Transpose", x, perm=_HEADS_FIRST)


def beside(
    graph: GraphBuilder, keys: ir.Value, latent: ir.Value, index: ir.Value | None
) -> ir.Value:
    """Values: the keys, or `index` [B, S, index] in place of what they have before the latent."""
    return keys if index is None else graph.op("Concat", index, latent, axis=-1)


def _apart(graph: GraphBuilder, x: ir.Value, heads: int, width: int) -> ir.Value:
    """[B, S, heads * width] -> [tokens, heads, width]."""
    return graph.op("Reshape", x, graph.constant([-1, heads, width]))


def _together(graph: GraphBuilder, x: ir.Value, like: ir.Value, width: int) -> ir.Value:
    """[tokens, heads, n] -> [B, S, width], B and S as `like` has them."""
    rows = graph.op("Shape", like, start=0, end=2)
    return graph.op("Reshape", x, graph.op("Concat", rows, graph.constant([width]), axis=0))
