"""What a layer with a running state reads of its tokens: each channel's last few inputs, added up.

Owns the two ways of saying that. The runtime's own kernel takes thrice as long as shifted sums on
the processor, and is one kernel in place of a dozen on a GPU. What is kept of the last inputs lies
as each of the two has it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.builder import ACTIVATIONS, MICROSOFT, GraphBuilder
from installer.checkpoint.graph.recurrent import Recurrent, Remembering

_END = (1 << 31) - 1
"""Beyond any sequence."""


def convolve(
    graph: GraphBuilder,
    own: Recurrent,
    attention: Remembering,
    layer: int,
    at: str,
    mixed: ir.Value,
) -> ir.Value:
    """mixed [B, S, channels] -> silu of what the module `at` adds up, in 32 bits."""
    if graph.dtype == ir.DataType.FLOAT:
        return _by_sums(graph, own, attention, layer, at, mixed)
    return _by_kernel(graph, own, attention, layer, at, graph.full(mixed))


def _by_sums(
    graph: GraphBuilder,
    own: Recurrent,
    attention: Remembering,
    layer: int,
    at: str,
    mixed: ir.Value,
) -> ir.Value:
    tail = own.kernel - 1
    sizes = (tail, own.channels)
    before = attention.past("tail", layer, sizes)
    if before is None:
        before = graph.array("nothing.before", np.zeros((1, *sizes), np.float32))
    joined = graph.op("Concat", before, mixed, axis=1)
    attention.present("tail", layer, _slice(graph, joined, -tail), sizes)
    taps = _taps(graph, own, at)
    total = graph.op("Mul", mixed, taps[tail])
    for place in range(tail):
        shifted = _slice(graph, joined, place, place - tail)
        total = graph.op("Add", total, graph.op("Mul", shifted, taps[place]))
    return ACTIVATIONS["silu"](graph, total, 1.0)


def _by_kernel(
    graph: GraphBuilder,
    own: Recurrent,
    attention: Remembering,
    layer: int,
    at: str,
    mixed: ir.Value,
) -> ir.Value:
    sizes = (own.channels, own.kernel - 1)
    each = graph.constant([own.channels, 1, 1])
    # The compiler puts them together once.
    taps = [graph.op("Reshape", tap, each) for tap in _taps(graph, own, at)]
    summed, tail = graph.ops(
        "CausalConvWithState",
        graph.op("Transpose", mixed, perm=[0, 2, 1]),
        *(graph.op("Concat", *taps, axis=2), None, attention.past("tail", layer, sizes)),
        outputs=2,
        domain=MICROSOFT,
        activation="silu",
    )
    attention.present("tail", layer, tail, sizes)
    return graph.op("Transpose", summed, perm=[0, 2, 1])


def _slice(graph: GraphBuilder, x: ir.Value, start: int, stop: int = _END) -> ir.Value:
    """Of x [B, S, ...] the tokens from `start` to `stop`, counted from the end if below 0."""
    return graph.op("Slice", x, *(graph.constant([number]) for number in (start, stop, 1)))


def _taps(graph: GraphBuilder, own: Recurrent, at: str) -> list[ir.Value]:
    """What each of a channel's last inputs is multiplied by, [channels] each."""
    name = f"{at}.conv1d.weight"
    graph.tensors.expect(name, (own.channels, 1, own.kernel))
    taps = graph.tensors.stored_floats(name)
    return [
        graph.floats(f"{name}.{place}", (own.channels,), [np.ascontiguousarray(taps[:, 0, place])])
        for place in range(own.kernel)
    ]
