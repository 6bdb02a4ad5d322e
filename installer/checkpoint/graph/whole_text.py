"""Attention among all tokens of a text, in both directions, turned by position.

Owns how it is said to the runtime. Layers that see the whole text take the mask as BERT's do. Of
layers that see a window, blocks of queries meet the keys around them, so that time and memory grow
with the length of a text and not with its square (Beltagy et al., Longformer (2020), section 3.1).
What of a batch is padding is then part of what is added to the products: the one form of it that
every kernel takes. Why: docs/decisions/0289-encoders-of-newer-kinds.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.angles import Tables, angles
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Heads, norm_of_sum
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.kinds import Kinds, LayerKind
from installer.checkpoint.graph.operators import MICROSOFT

_UNSEEN = -1e4
"""Added to the product with a key that is not seen: e to its power is zero, and 16 bits hold it."""
_AROUND = 3
"""Blocks of keys that a block of queries may see."""
_PRODUCT_BYTES = 4
"""Of a product and of its weight in 16 bits, where a kernel keeps both."""
_PLACE_BYTES = 24
"""Of what is computed once of a key's place beside a query."""


@dataclass(frozen=True, slots=True)
class HeadSizes:
    """Of the heads of all layers. Counts, but for `scale`.

    Attributes:
        scale: what products of queries and keys are multiplied by.
        context: tokens of the longest text.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    context: int

    @classmethod
    def alike(cls, hidden: int, heads: int, context: int) -> HeadSizes:
        """Of `heads` that share the width of a state, each with keys and values of its own."""
        head_dim = hidden // heads
        return cls(heads, heads, head_dim, head_dim**-0.5, context)


def window_bytes(kinds: Kinds, heads: int) -> int:
    """Bytes that a token's products in a layer with a window take, at most."""
    widest = max((kind.window or 0 for kind in kinds), default=0)
    return _AROUND * widest * (heads * _PRODUCT_BYTES + _PLACE_BYTES)


class WholeText:
    """The attention of one graph.

    A window counts the token itself and those before it that are seen; as many behind it are.
    """

    def __init__(
        self, graph: GraphBuilder, sizes: HeadSizes, ids: ir.Value, mask: ir.Value
    ) -> None:
        self._graph = graph
        self._sizes = sizes
        self._mask = mask
        self._tokens = graph.op("Shape", ids, start=1, end=2)
        self._padding: ir.Value | None = None
        self._blocks: dict[int, _Blocks] = {}

    def attend(self, heads: Heads, kind: LayerKind, tables: Tables) -> ir.Value:
        """Queries, keys and values of a layer -> [B, S, heads * head_dim]."""
        sizes = self._sizes
        queries, keys = (self._turn(x, tables) for x in heads[:2])
        if kind.window is None:
            self._padding = self._padding or self._graph.padding(self._mask, sizes.head_dim)
            return self._kernel(queries, keys, heads[2], self._padding)
        blocks = self._blocks_of(kind.window - 1)
        queries = blocks.queries(queries, sizes.heads * sizes.head_dim)
        keys, values = (blocks.seen(x, sizes.kv_heads * sizes.head_dim) for x in (keys, heads[2]))
        return blocks.joined(self._kernel(queries, keys, values, None, blocks.bias))

    def _turn(self, x: ir.Value, tables: Tables) -> ir.Value:
        """x [B, S, heads * head_dim], each token turned by its position."""
        start = self._graph.constant([0])
        return self._graph.op("RotaryEmbedding", x, start, *tables, domain=MICROSOFT)

    def _kernel(
        self, queries: ir.Value, keys: ir.Value, values: ir.Value, *masks: ir.Value | None
    ) -> ir.Value:
        return self._graph.op(
            "MultiHeadAttention",
            *(queries, self._spread(keys), self._spread(values), None, *masks),
            domain=MICROSOFT,
            num_heads=self._sizes.heads,
            scale=self._sizes.scale,
        )

    def _spread(self, x: ir.Value) -> ir.Value:
        """Keys or values [B, S, kv_heads * head_dim], each once for every head that shares it."""
        graph, sizes = self._graph, self._sizes
        each = sizes.heads // sizes.kv_heads
        if each == 1:
            return x
        apart = graph.constant([0, 0, sizes.kv_heads, 1, sizes.head_dim])
        x = graph.op("Expand", graph.op("Reshape", x, apart), graph.constant([1, 1, 1, each, 1]))
        return graph.op("Reshape", x, graph.constant([0, 0, sizes.heads * sizes.head_dim]))

    def _blocks_of(self, reach: int) -> _Blocks:
        if reach not in self._blocks:
            made = _Blocks(self._graph, self._tokens, self._mask, reach, self._sizes.context)
            self._blocks[reach] = made
        return self._blocks[reach]


class WholeDecoder:
    """A decoder's blocks as an encoder: what becomes of all tokens' states is for `conclude`."""

    def __init__(
        self,
        graph: GraphBuilder,
        shape: DecoderShape,
        conclude: Callable[[GraphBuilder, ir.Value, ir.Value], None],
    ) -> None:
        """`conclude` makes the output of states [B, S, hidden] and the mask."""
        self._graph = graph
        self._shape = shape
        self._conclude = conclude
        self.ids = graph.input("input_ids", ir.DataType.INT64, ("batch", "tokens"))
        self._mask = graph.input("attention_mask", ir.DataType.INT64, ("batch", "tokens"))
        heads = (shape.heads, shape.kv_heads, shape.head_dim)
        sizes = HeadSizes(*heads, shape.scale, shape.context)
        self._attention = WholeText(graph, sizes, self.ids, self._mask)
        self._tables = angles(graph, shape)

    def attend(self, layer: int, heads: Heads) -> ir.Value:
        """Queries, keys and values of a layer -> [B, S, heads * head_dim]."""
        return self._attention.attend(heads, self._shape.kinds[layer], self._tables[layer])

    def choose(self, x: ir.Value) -> None:
        """The graph ends here: every token's state is of use."""
        graph, shape = self._graph, self._shape
        states, _ = norm_of_sum(graph, shape, f"{shape.root}.norm", x, None, wide=True)
        self._conclude(graph, states, self._mask)

    def conclude(self, scores: ir.Value) -> None:
        """No token's score is wanted."""
        raise AssertionError("`choose` gives no rows")


class _Blocks:
    """A batch in blocks: each of as many tokens as are seen on either side, or of a whole text.

    Attributes:
        bias: what is added to products of queries and keys, [B * blocks, 1, size, span].
    """

    def __init__(
        self, graph: GraphBuilder, tokens: ir.Value, mask: ir.Value, reach: int, context: int
    ) -> None:
        self._graph = graph
        self._tokens = tokens
        none, one, two = (graph.constant([number]) for number in range(3))
        most = context + reach
        places = graph.array(f"const.places-{most}", np.arange(most, dtype=np.int64))
        self._size = size = self._at_most(tokens, graph.constant([reach]))
        count = graph.op("Div", graph.op("Add", tokens, graph.op("Sub", size, one)), size)
        self._length = length = graph.op("Mul", count, size)
        around = graph.op("Mul", size, graph.constant([_AROUND]))
        self._span = span = self._at_most(around, length)

        own = graph.op("Slice", places, none, length)
        own = graph.op("Reshape", own, self._shape(graph.constant([-1]), size))
        first = graph.op("Sub", graph.op("Slice", own, none, one, one), size)
        first = self._at_most(graph.op("Max", first, none), graph.op("Sub", length, span))
        seen = graph.op("Add", first, graph.op("Slice", places, none, span))
        last = graph.op("Sub", tokens, one)
        self._own, self._seen = self._at_most(own, last), self._at_most(seen, last)
        # The last block may have places behind the longest text: far from all others.
        behind, nowhere = graph.op("Greater", seen, last), graph.constant([2 * most])
        seen = graph.op("Unsqueeze", graph.op("Where", behind, nowhere, seen), one)
        apart = graph.op("Abs", graph.op("Sub", graph.op("Unsqueeze", own, two), seen))
        far = graph.op("Greater", apart, graph.constant([reach]))
        self.bias = self._bias(far, mask)

    def queries(self, x: ir.Value, width: int) -> ir.Value:
        """x [B, S, width] -> [B * blocks, size, width]."""
        return self._gathered(x, self._own, self._size, width)

    def seen(self, x: ir.Value, width: int) -> ir.Value:
        """x [B, S, width] -> what each block may see, [B * blocks, span, width]."""
        return self._gathered(x, self._seen, self._span, width)

    def joined(self, x: ir.Value) -> ir.Value:
        """x [B * blocks, size, width] -> [B, S, width]."""
        graph = self._graph
        none, one = graph.constant([0]), graph.constant([1])
        rows = graph.op("Reshape", x, self._shape(graph.constant([-1]), self._length, none))
        return graph.op("Slice", rows, none, self._tokens, one)

    def _gathered(self, x: ir.Value, places: ir.Value, count: ir.Value, width: int) -> ir.Value:
        graph = self._graph
        shape = self._shape(graph.constant([-1]), count, graph.constant([width]))
        return graph.op("Reshape", graph.op("Gather", x, places, axis=1), shape)

    def _bias(self, far: ir.Value, mask: ir.Value) -> ir.Value:
        """Of keys that are `far` [blocks, size, span], and of padding."""
        graph = self._graph
        real = graph.op("Cast", mask, to=ir.DataType.FLOAT)
        absent = graph.op("Sub", graph.constant([1.0]), real)
        absent = graph.op("Mul", absent, graph.constant([_UNSEEN]))
        absent = graph.op("Cast", absent, to=graph.dtype)
        absent = graph.op("Gather", absent, self._seen, axis=1)
        absent = graph.op("Unsqueeze", absent, graph.constant([2]))
        bias = graph.op("Where", far, graph.parameter(graph.constant([_UNSEEN])), absent)
        shape = self._shape(graph.constant([-1, 1]), self._size, self._span)
        return graph.op("Reshape", bias, shape)

    def _shape(self, *parts: ir.Value) -> ir.Value:
        return self._graph.op("Concat", *parts, axis=0)

    def _at_most(self, x: ir.Value, most: ir.Value) -> ir.Value:
        """The smaller of two whole numbers: no operator more for a node to allow."""
        graph = self._graph
        over = graph.op("Max", graph.op("Sub", x, most), graph.constant([0]))
        return graph.op("Sub", x, over)
