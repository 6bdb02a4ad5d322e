"""What opens the gates of feed-forwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import onnx_ir as ir

from installer.checkpoint.graph.operators import MICROSOFT
from installer.checkpoint.graph.stream import Stream

Activation = Literal["silu", "gelu", "gelu_tanh"]


def _silu(graph: Stream, y: ir.Value, divided: float) -> ir.Value:
    # y * divided may outgrow the graph's precision: of infinity, too, the sigmoid is one or zero.
    return graph.op("Mul", y, graph.op("Sigmoid", graph.divide(y, 1 / divided)))


def _gelu(graph: Stream, y: ir.Value, divided: float) -> ir.Value:
    return _whole(graph, y, divided, lambda y: graph.op("Gelu", y, domain=MICROSOFT))


def _gelu_tanh(graph: Stream, y: ir.Value, divided: float) -> ir.Value:
    return _whole(graph, y, divided, lambda y: graph.op("Gelu", y, approximate="tanh"))


def _whole(
    graph: Stream, y: ir.Value, divided: float, open_: Callable[[ir.Value], ir.Value]
) -> ir.Value:
    if divided == 1:
        return open_(y)
    opened = open_(graph.op("Mul", graph.full(y), graph.constant([divided])))
    return graph.op("Cast", graph.op("Mul", opened, graph.constant([1 / divided])), to=graph.dtype)


ACTIVATIONS: Mapping[Activation, Callable[[Stream, ir.Value, float], ir.Value]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}
"""activation(y * divided) / divided, of y and what it is divided by."""
