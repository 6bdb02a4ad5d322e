"""What a layer with a running state reads of its tokens: each channel's last few inputs, added up.

Owns the two ways of saying that. The runtime's own kernel takes thrice as long as shifted sums on
the processor, and is one kernel in place of a dozen on a GPU. What is kept of the last inputs lies
as each of the two has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph import experts
from installer.checkpoint.graph.activations import ACTIVATIONS
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.operators import MICROSOFT
from installer.checkpoint.graph.recurrent import Recurrent, Remembering
from installer.checkpoint.quantize import Float32

_END = (1 << 31) - 1
"""Beyond any sequence."""


def convolve(
    graph: GraphBuilder,
    shape: DecoderShape,
    attention: Remembering,
    layer: int,
    name: str | Sequence[str],
    x: ir.Value,
    activation: Literal["silu", "none"],
    *,
    bias: bool = False,
    factors: Float32 | None = None,
) -> ir.Value:
    """x [B, S, channels] -> `activation` of what the module `name` adds up, in 32 bits.

    Several have the channels one behind the other. `factors` [channels]: what x is to be multiplied
    by before.
    """
    own = shape.recurrent
    assert own is not None
    taps = _taps(graph, own, name, factors)
    addend = experts.vector(graph, f"{name}.bias", own.channels) if bias else None
    if graph.dtype != ir.DataType.FLOAT:
        return _by_kernel(graph, own, attention, layer, taps, addend, graph.full(x), activation)
    total = _by_sums(graph, own, attention, layer, taps, x)
    total = total if addend is None else graph.op("Add", total, addend)
    return total if activation == "none" else ACTIVATIONS[activation](graph, total, 1.0)


def _by_sums(
    graph: GraphBuilder,
    own: Recurrent,
    attention: Remembering,
    layer: int,
    taps: Sequence[ir.Value],
    x: ir.Value,
) -> ir.Value:
    tail = own.kernel - 1
    sizes = (tail, own.channels)
    before = attention.past("tail", layer, sizes)
    if before is None:
        before = graph.array("nothing.before", np.zeros((1, *sizes), np.float32))
    joined = graph.op("Concat", before, x, axis=1)
    attention.present("tail", layer, _slice(graph, joined, -tail), sizes)
    total = graph.op("Mul", x, taps[tail])
    for place in range(tail):
        shifted = _slice(graph, joined, place, place - tail)
        total = graph.op("Add", total, graph.op("Mul", shifted, taps[place]))
    return total


def _by_kernel(
    graph: GraphBuilder,
    own: Recurrent,
    attention: Remembering,
    layer: int,
    taps: Sequence[ir.Value],
    addend: ir.Value | None,
    x: ir.Value,
    activation: str,
) -> ir.Value:
    sizes = (own.channels, own.kernel - 1)
    each = graph.constant([own.channels, 1, 1])
    # The compiler puts them together once.
    columns = [graph.op("Reshape", tap, each) for tap in taps]
    summed, tail = graph.ops(
        "CausalConvWithState",
        graph.op("Transpose", x, perm=[0, 2, 1]),
        *(graph.op("Concat", *columns, axis=2), addend, attention.past("tail", layer, sizes)),
        outputs=2,
        domain=MICROSOFT,
        activation=activation,
    )
    attention.present("tail", layer, tail, sizes)
    return graph.op("Transpose", summed, perm=[0, 2, 1])


def _slice(graph: GraphBuilder, x: ir.Value, start: int, stop: int = _END) -> ir.Value:
    """Of x [B, S, ...] the tokens from `start` to `stop`, counted from the end if below 0."""
    return graph.op("Slice", x, *(graph.constant([number]) for number in (start, stop, 1)))


def _taps(
    graph: GraphBuilder, own: Recurrent, names: str | Sequence[str], factors: Float32 | None
) -> list[ir.Value]:
    """What each of a channel's last inputs is multiplied by, [channels] each."""
    modules = [names] if isinstance(names, str) else names
    stored = [f"{module}.weight" for module in modules]
    left = own.channels
    for name in stored:
        count = left if name == stored[-1] else graph.tensors.shape(name)[0]
        graph.tensors.expect(name, (count, 1, own.kernel))
        left -= count
    taps, name = np.concatenate([graph.tensors.stored_floats(name) for name in stored]), stored[0]
    if factors is not None:
        taps = taps * factors[:, None, None]
    return [
        graph.floats(f"{name}.{place}", (own.channels,), [np.ascontiguousarray(taps[:, 0, place])])
        for place in range(own.kernel)
    ]
