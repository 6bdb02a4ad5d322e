"""A gated short convolution: a layer that remembers its last few inputs, and nothing before them.

    opened, closing, x   three linear layers' results
    result               closing * (the last few of opened * x, added up by channel)

Owns the layer's arithmetic. Reference: LFM2 Technical Report (2025), 2.1; `Lfm2ShortConv`.
"""

from __future__ import annotations

import onnx_ir as ir

from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.convolution import convolve
from installer.checkpoint.graph.decoder import Attention
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.recurrent import Remembering


def mix(
    graph: GraphBuilder,
    shape: DecoderShape,
    attention: Attention,
    layer: int,
    at: str,
    x: ir.Value,
) -> ir.Value:
    """x [B, S, hidden] -> what `layer`, called `at`, adds to the stream; a decoder's Mixing."""
    at, hidden, parts = f"{at}.conv", shape.hidden, shape.divisors(graph)
    assert isinstance(attention, Remembering), "this form has no layers with a state"
    # In 32 bits from here: products of two numbers that nothing bounds.
    both = _times(graph, graph.linear(x, f"{at}.in_proj", hidden, 3 * hidden), parts.into_attention)
    thirds = graph.constant([hidden] * 3)
    opened, closing, taken = graph.ops("Split", both, thirds, outputs=3, axis=-1)
    kept = graph.made_full(graph.op("Mul", opened, taken))
    summed = convolve(graph, shape, attention, layer, f"{at}.conv", kept, "none")
    by = parts.into_attention * parts.out_of_attention
    result = graph.operand(_times(graph, graph.made_full(graph.op("Mul", closing, summed)), 1 / by))
    return graph.linear(result, f"{at}.out_proj", hidden, hidden)


def _times(graph: GraphBuilder, x: ir.Value, factor: float) -> ir.Value:
    """x * factor, in 32 bits."""
    x = graph.full(x)
    return x if factor == 1 else graph.made_full(graph.op("Mul", x, graph.constant([factor])))
