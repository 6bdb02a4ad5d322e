"""Gated DeltaNet: a layer that reads with a running state.

    queries, keys, values   the last few inputs of each channel, added up (convolution.py)
    state                   decays, forgets what it has under the key, and learns the value there
    result                  what the state has under the query, each head normed and gated

Owns the layer's arithmetic, in the runtime's operators. From the convolution to the state all is
computed in 32 bits, also for a GPU, whose kernel has no other state. The decay comes from plain
weights in every grade: it is raised to the power of all tokens that follow.

Reference: Yang et al., Gated Delta Networks (2024); `Qwen3_5GatedDeltaNet`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph import experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.convolution import convolve
from installer.checkpoint.graph.decoder import Attention
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.linear_attention import Read, deltas_of, look_up
from installer.checkpoint.graph.operators import MICROSOFT
from installer.checkpoint.graph.recurrent import Deltas, Remembering

_LENGTH_EPSILON = 1e-6
"""Added to the square of a query's or key's length."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a layer reads of its tokens, [B, S, ...].

    Attributes:
        mixed: queries, keys and values before the convolution, [.., channels].
        gates: of the results, [.., heads * value_dim].
        rates: how much is learned, before the sigmoid, [.., heads].
        steps: how much decays, before it is bent, [.., heads].
    """

    mixed: ir.Value
    gates: ir.Value
    rates: ir.Value
    steps: ir.Value


@dataclass(frozen=True, slots=True)
class Kind:
    """In what families' layers differ, but for what they read.

    Attributes:
        convolutions, norm, out: what modules are called.
        gate: what bends the gates of its results.
        epsilon: of the norm of what a state says; None is as of all norms.
        most: how much is learned at most; beyond one, what is known is turned over.
    """

    convolutions: tuple[str, ...] = ("conv1d",)
    norm: str = "norm"
    out: str = "out_proj"
    gate: Literal["silu", "sigmoid"] = "silu"
    epsilon: float | None = None
    most: float = 1.0


PLAIN = Kind()
Project = Callable[[GraphBuilder, DecoderShape, str, ir.Value], Inputs]
"""x [B, S, hidden] -> what the module `at` reads."""


def mix(
    graph: GraphBuilder,
    shape: DecoderShape,
    attention: Attention,
    layer: int,
    at: str,
    x: ir.Value,
    *,
    project: Project,
    kind: Kind = PLAIN,
) -> ir.Value:
    """x [B, S, hidden] -> what `layer`, called `at`, adds to the stream; a decoder's Mixing."""
    own, at, parts = deltas_of(shape), f"{at}.linear_attn", shape.divisors(graph)
    assert parts.into_attention == 1, "what decays is not to be divided"
    assert isinstance(attention, Remembering), "this form has no layers with a state"
    inputs = project(graph, shape, at, x)
    names = [f"{at}.{name}" for name in kind.convolutions]
    read = convolve(graph, shape, attention, layer, names, inputs.mixed, "silu")
    widths = graph.constant([own.keys, own.keys, own.values])
    queries, keys, values = graph.ops("Split", read, widths, outputs=3, axis=-1)
    decay, beta = _rates(graph, own, at, inputs)
    if kind.most != 1:
        beta = graph.op("Mul", beta, graph.constant([kind.most]))
    found = Read(unit(graph, own, queries), unit(graph, own, keys), values, decay, beta)
    result = look_up(graph, own, attention, layer, found)
    epsilon = shape.epsilon if kind.epsilon is None else kind.epsilon
    gain = (f"{at}.{kind.norm}.weight", own.value_dim, epsilon)
    normed = graph.norm_heads(graph.made_full(result), own.heads, *gain)
    opened = graph.op("Sigmoid", inputs.gates)
    if kind.gate == "silu":
        opened = graph.op("Mul", inputs.gates, opened)
    opened = graph.op("Mul", normed, opened)
    opened = graph.divide(opened, parts.out_of_attention)
    return graph.linear(opened, f"{at}.{kind.out}", own.values, shape.hidden)


def project_apart(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Inputs:
    """By four linear layers."""
    own, hidden = deltas_of(shape), shape.hidden
    outer = {f"{at}.in_proj_qkv": 2 * own.keys + own.values, f"{at}.in_proj_z": own.values}
    mixed, gates = graph.linears(x, outer, hidden)
    rates, steps = (graph.linear_in_full(x, f"{at}.in_proj_{n}", hidden, own.heads) for n in "ba")
    return Inputs(mixed, gates, rates, steps)


def project_together(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Inputs:
    """By two linear layers, in whose results all that belongs to one key's head lies together."""
    own, hidden = deltas_of(shape), shape.hidden
    served = own.heads // own.key_heads
    of_values = served * own.value_dim
    both = graph.linear(x, f"{at}.in_proj_qkvz", hidden, 2 * (own.keys + own.values))
    sizes = [own.key_dim, own.key_dim, of_values, of_values]
    *mixed, gates = _apart(graph, own, both, sizes)
    small = graph.linear_in_full(x, f"{at}.in_proj_ba", hidden, 2 * own.heads)
    rates, steps = _apart(graph, own, small, [served, served])
    return Inputs(graph.op("Concat", *mixed, axis=-1), gates, rates, steps)


def _apart(graph: GraphBuilder, own: Deltas, x: ir.Value, sizes: list[int]) -> list[ir.Value]:
    """x [B, S, key_heads * sum(sizes)] -> of all heads, each of their parts."""
    heads = graph.op("Reshape", x, graph.constant([0, 0, own.key_heads, sum(sizes)]))
    parts = graph.ops("Split", heads, graph.constant(sizes), outputs=len(sizes), axis=-1)
    flat = (graph.constant([0, 0, own.key_heads * size]) for size in sizes)
    return [graph.op("Reshape", *pair) for pair in zip(parts, flat, strict=True)]


def unit(graph: GraphBuilder, own: Deltas, x: ir.Value) -> ir.Value:
    """Each head of x [B, S, keys] at unit length: an RMS norm, but for a factor."""
    gain = np.full(own.key_dim, own.key_dim**-0.5, np.float32)
    heads = graph.op("Reshape", x, graph.constant([0, 0, own.key_heads, own.key_dim]))
    normed = graph.op(
        "SimplifiedLayerNormalization",
        *(heads, graph.array(f"unit.{own.key_dim}", gain)),
        axis=-1,
        epsilon=_LENGTH_EPSILON / own.key_dim,
        stash_type=1,
    )
    return graph.op("Reshape", normed, graph.constant([0, 0, own.keys]))


def _rates(graph: GraphBuilder, own: Deltas, at: str, inputs: Inputs) -> tuple[ir.Value, ir.Value]:
    """Logarithms of what is left of the state, and how much is learned: [B, S, heads] each."""
    bias = experts.vector(graph, f"{at}.dt_bias", own.heads)
    speeds = -np.exp(graph.tensors.vector(f"{at}.A_log", own.heads))
    decay, beta = graph.ops(
        "LinearAttentionGate",
        *(inputs.steps, bias, graph.floats(f"{at}.speeds", (own.heads,), [speeds]), inputs.rates),
        outputs=2,
        domain=MICROSOFT,
    )
    return decay, beta
