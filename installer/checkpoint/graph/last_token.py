"""Attention of a decoder that reads whole texts and generates nothing.

Owns the form without a cache: every text in one piece, shorter ones padded at their right, and
only the state of each text's last token comes out. Its inputs are those of every encoder graph.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from installer.checkpoint.graph.angles import angles
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Heads, norm_of_sum
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.operators import MICROSOFT

Conclude = Callable[[GraphBuilder, ir.Value], None]
"""Makes the output of the last tokens' states [B, hidden]."""


class LastToken:
    """Each token attends to those before it; padding behind a text is never looked at."""

    def __init__(self, graph: GraphBuilder, shape: DecoderShape, conclude: Conclude) -> None:
        self._graph = graph
        self._shape = shape
        self._conclude = conclude
        self.ids = graph.input("input_ids", ir.DataType.INT64, ("batch", "tokens"))
        mask = graph.input("attention_mask", ir.DataType.INT64, ("batch", "tokens"))
        lengths = graph.op("ReduceSum", mask, graph.constant([1]), keepdims=0)
        self._last = graph.op("Add", lengths, graph.constant([-1]))
        self._seqlens = graph.op("Cast", self._last, to=ir.DataType.INT32)
        width = graph.op("Squeeze", graph.op("Shape", self.ids, start=1, end=2))
        self._total = graph.op("Cast", width, to=ir.DataType.INT32)
        self._tables = angles(graph, shape)

    def attend(self, layer: int, heads: Heads) -> ir.Value:
        """Queries, keys and values of a layer -> [B, S, heads * head_dim]."""
        shape, window = self._shape, self._shape.kinds[layer].window
        attended, *_ = self._graph.ops(
            "GroupQueryAttention",
            *heads,
            *(None, None, self._seqlens, self._total),
            *self._tables[layer],
            outputs=3,
            domain=MICROSOFT,
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
            scale=shape.scale,
            **({} if window is None else {"local_window_size": window}),
        )
        return attended

    def choose(self, x: ir.Value) -> None:
        """The graph ends here: the norm and what follows it see one row of each text."""
        graph, shape = self._graph, self._shape
        index = graph.op("Unsqueeze", self._last, graph.constant([1]))
        rows = graph.op("GatherND", x, index, batch_dims=1)
        states, _ = norm_of_sum(graph, shape, f"{shape.root}.norm", rows, None, wide=True)
        self._conclude(graph, states)

    def conclude(self, scores: ir.Value) -> None:
        """No token's score is wanted."""
        raise AssertionError("`choose` gives no rows")
