"""Linear attention: what heads look up in a state that each token changes, by the runtime's kernel.

Owns the operator, and where a layer's state comes from and goes. What is looked up, learned and
forgotten is the layer's own (gated_delta.py, kimi_delta.py, state_space.py).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.operators import MICROSOFT
from installer.checkpoint.graph.recurrent import Deltas, Remembering


class Read(NamedTuple):
    """What a layer makes of each token, in 32 bits: [B, S, keys], [B, S, keys], [B, S, values].

    decay: logarithms of what is left of the state, [B, S, heads or keys].
    rates: how much of what is known under a key the value replaces, [B, S, heads]; None: it is
        added.
    """

    queries: ir.Value
    keys: ir.Value
    values: ir.Value
    decay: ir.Value
    rates: ir.Value | None = None


def deltas_of(shape: DecoderShape) -> Deltas:
    """Of the state of a decoder that has one."""
    assert shape.recurrent is not None
    assert shape.recurrent.deltas is not None
    return shape.recurrent.deltas


def look_up(
    graph: GraphBuilder,
    own: Deltas,
    attention: Remembering,
    layer: int,
    read: Read,
    *,
    scale: float | None = None,
) -> ir.Value:
    """What the state has under each token's query once that token is learned, [B, S, values].

    `scale`: of queries; None is 1 / sqrt(key_dim).
    """
    rule: Literal["gated", "gated_delta"] = "gated" if read.rates is None else "gated_delta"
    scaled = {} if scale is None else {"scale": scale}
    result, state = graph.ops(
        "LinearAttention",
        *(read.queries, read.keys, read.values),
        attention.past("state", layer, own.sizes),
        *(entry for entry in (read.decay, read.rates) if entry is not None),
        outputs=2,
        domain=MICROSOFT,
        update_rule=rule,
        q_num_heads=own.key_heads,
        kv_num_heads=own.heads,
        **scaled,
    )
    attention.present("state", layer, state, own.sizes)
    return result
