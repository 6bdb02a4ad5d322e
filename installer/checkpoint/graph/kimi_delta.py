"""Kimi Delta Attention: a running state of which each channel of a key decays at its own pace.

    queries, keys, values   the last few inputs of each channel, added up (convolution.py)
    state                   decays by channels, forgets what it has under the key, learns the value
    result                  what the state has under the query, each head normed and gated

Owns the layer's arithmetic, in the runtime's operators; what it shares with Gated DeltaNets is
gated_delta.py's. The decay comes from plain weights in every grade, as there.

Reference: Kimi Linear (2025); `KimiLinearDeltaAttention`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph import experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.convolution import convolve
from installer.checkpoint.graph.decoder import Attention
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.gated_delta import unit
from installer.checkpoint.graph.linear_attention import Read, deltas_of, look_up
from installer.checkpoint.graph.recurrent import Deltas, Remembering

_PARTS = "qkv"


def mix(
    graph: GraphBuilder,
    shape: DecoderShape,
    attention: Attention,
    layer: int,
    at: str,
    x: ir.Value,
) -> ir.Value:
    """x [B, S, hidden] -> what `layer`, called `at`, adds to the stream; a decoder's Mixing."""
    own, at, parts = deltas_of(shape), f"{at}.self_attn", shape.divisors(graph)
    assert parts.into_attention == 1, "what decays is not to be divided"
    assert isinstance(attention, Remembering), "this form has no layers with a state"
    outer = {f"{at}.{part}_proj": own.keys for part in _PARTS}
    mixed = graph.op("Concat", *graph.linears(x, outer, shape.hidden), axis=-1)
    convolutions = [f"{at}.{part}_conv1d" for part in _PARTS]
    read = convolve(graph, shape, attention, layer, convolutions, mixed, "silu")
    widths = graph.constant([own.keys, own.keys, own.values])
    queries, keys, values = graph.ops("Split", read, widths, outputs=3, axis=-1)
    rates = graph.linear_in_full(x, f"{at}.b_proj", shape.hidden, own.heads)
    pace = _decay(graph, shape, own, at, x), graph.op("Sigmoid", rates)
    found = Read(unit(graph, own, queries), unit(graph, own, keys), values, *pace)
    result = look_up(graph, own, attention, layer, found)
    gain = (f"{at}.o_norm.weight", own.value_dim, shape.epsilon)
    normed = graph.norm_heads(graph.made_full(result), own.heads, *gain)
    opened = graph.op("Mul", normed, graph.op("Sigmoid", _gates(graph, shape, own, at, x)))
    opened = graph.divide(opened, parts.out_of_attention)
    return graph.linear(opened, f"{at}.o_proj", own.values, shape.hidden)


def _decay(graph: GraphBuilder, shape: DecoderShape, own: Deltas, at: str, x: ir.Value) -> ir.Value:
    """Logarithms of what is left of the state, [B, S, keys]."""
    low = graph.linear_in_full(x, f"{at}.f_a_proj", shape.hidden, own.key_dim)
    steps = graph.linear_in_full(low, f"{at}.f_b_proj", own.key_dim, own.keys)
    steps = graph.op("Add", steps, experts.vector(graph, f"{at}.dt_bias", own.keys))
    name = f"{at}.A_log"
    graph.tensors.expect(name, (1, 1, own.heads, 1))
    speeds = -np.exp(graph.tensors.stored_floats(name).reshape(-1))
    each = np.repeat(speeds, own.key_dim).astype(np.float32)
    speed = graph.floats(f"{at}.speeds", (own.keys,), [each])
    return graph.op("Mul", graph.op("Softplus", steps), speed)


def _gates(graph: GraphBuilder, shape: DecoderShape, own: Deltas, at: str, x: ir.Value) -> ir.Value:
    low = graph.linear(x, f"{at}.g_a_proj", shape.hidden, own.value_dim)
    return graph.linear(low, f"{at}.g_b_proj", own.value_dim, own.values)
