"""Attention that lets through of what its heads read what a gate of the token opens.

Owns the way of a gate from where it is made, beside queries, keys and values, to where it opens.
Qiu et al., Gated Attention for Large Language Models (2025).
"""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from installer.checkpoint.graph import decoder
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape


class GatedProjection(Protocol):
    """x [B, S, hidden] -> queries, keys, values of layer `at`, and its gate [B, S, heads *
    head_dim], a number for each that the heads read."""

    def __call__(
        self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value
    ) -> tuple[Heads, ir.Value]: ...


class GatedHeads:
    """The layers of one graph."""

    def __init__(self, project: GatedProjection) -> None:
        self._project = project
        self._gates: dict[str, ir.Value] = {}
        """Of each layer, from its projection to its conclusion."""

    def project(self, graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
        """Queries, keys and values."""
        heads, self._gates[at] = self._project(graph, shape, at, x)
        return heads

    def conclude(
        self, graph: GraphBuilder, shape: DecoderShape, at: str, attended: ir.Value
    ) -> ir.Value:
        """One linear layer of what the gates let through."""
        # It is divided as what it is made of; times that it may outgrow 16 bits, which opens it.
        gate = graph.divide(self._gates.pop(at), 1 / shape.divisors(graph).into_attention)
        opened = graph.op("Mul", attended, graph.op("Sigmoid", gate))
        return decoder.conclude_plainly(graph, shape, at, opened)
