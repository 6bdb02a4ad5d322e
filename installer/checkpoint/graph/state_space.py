"""Mamba-2: a layer that reads with a running state, which every head forgets at its own pace.

    gates, mixed, steps   a linear layer's results
    values, keys, queries the last few inputs of each channel of `mixed`, added up (convolution.py)
    state                 decays by the step, and learns the value, times the step, under the key
    result                what the state has under the query, and a share of the value itself,
                          gated and normed in groups of heads

Owns the layer's arithmetic, in the runtime's operators: to them it is linear attention whose heads
decay, with as many keys as groups. What the literature calls B is the keys, and C the queries. From
the convolution to the norm all is computed in 32 bits, as of gated_delta.py; the steps come from
plain weights in every grade.

Reference: Dao and Gu, Transformers are SSMs (2024); `GraniteMoeHybridMambaLayer`,
`NemotronHMamba2Mixer`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.graph import experts
from installer.checkpoint.graph.activations import ACTIVATIONS
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.convolution import convolve
from installer.checkpoint.graph.decoder import Attention
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.linear_attention import Read, deltas_of, look_up
from installer.checkpoint.graph.recurrent import Deltas, Recurrent, Remembering
from installer.checkpoint.quantize import Float32
from installer.checkpoint.settings import Settings

UNLIMITED: Final = [0.0, math.inf]
"""Between what config.json bounds steps where it does not bound them."""


@dataclass(frozen=True, slots=True)
class Kind:
    """In what the layers of families differ.

    Attributes:
        module: what the layer is called within its block.
        normed: whether what the gates let through is normed.
        gates, values, keys, queries, steps: what each is multiplied by when it is made.
        result: what the layer's result is multiplied by.
    """

    module: str
    normed: bool = True
    gates: float = 1.0
    values: float = 1.0
    keys: float = 1.0
    queries: float = 1.0
    steps: float = 1.0
    result: float = 1.0

    def of_channels(self, own: Deltas) -> Float32 | None:
        """What the channels of the convolution are multiplied by; None is nothing."""
        if self.values == self.keys == self.queries == 1:
            return None
        factors = (self.values, self.keys, self.queries)
        return np.repeat(np.array(factors, np.float32), (own.values, own.keys, own.keys))


def numbers(
    layers: frozenset[int], *, kernel: int, heads: int, head_dim: int, groups: int, state: int
) -> Recurrent:
    """Of layers whose `heads` share a key of `state` numbers in `groups`.

    Raises CheckpointError unless all groups are alike.
    """
    if heads % groups:
        raise CheckpointError(
            f"config.json: {heads} heads of a running state are not {groups} groups",
            hint="the checkpoint's config.json belongs to another model",
        )
    own = Deltas(key_heads=groups, heads=heads, key_dim=state, value_dim=head_dim)
    return Recurrent(layers, kernel, channels=own.values + 2 * own.keys, deltas=own)


def read(config: Settings, layers: frozenset[int], inner: int) -> Recurrent:
    """Of layers that are said in keys of `mamba_`, whose heads have `inner` numbers together.

    Raises CheckpointError naming a key that cannot be expressed.
    """
    config.expect("mamba_conv_bias", True)
    config.expect("mamba_proj_bias", False)
    config.expect("time_step_limit", UNLIMITED)
    config.ignore("mamba_chunk_size")
    heads = config.integer("mamba_n_heads", 128)
    if inner % heads:
        raise CheckpointError(
            f"config.json: mamba_n_heads {heads} do not divide {inner} numbers",
            hint="the checkpoint's config.json belongs to another model",
        )
    config.expect("mamba_d_head", "auto", inner // heads)
    return numbers(
        layers,
        kernel=config.integer("mamba_d_conv", 4),
        heads=heads,
        head_dim=inner // heads,
        groups=config.integer("mamba_n_groups", 1),
        state=config.integer("mamba_d_state", 256),
    )


def mix(
    graph: GraphBuilder,
    shape: DecoderShape,
    attention: Attention,
    layer: int,
    at: str,
    x: ir.Value,
    *,
    kind: Kind,
) -> ir.Value:
    """x [B, S, hidden] -> what `layer`, called `at`, adds to the stream; a decoder's Mixing."""
    own, at, parts = deltas_of(shape), f"{at}.{kind.module}", shape.divisors(graph)
    assert parts.into_attention == 1, "what decays is not to be divided"
    assert isinstance(attention, Remembering), "this form has no layers with a state"
    gates, mixed, steps = _project(graph, shape, own, at, x)
    factors, name = kind.of_channels(own), f"{at}.conv1d"
    read = convolve(graph, shape, attention, layer, name, mixed, "silu", bias=True, factors=factors)
    widths = graph.constant([own.values, own.keys, own.keys])
    values, keys, queries = graph.ops("Split", read, widths, outputs=3, axis=-1)
    steps, decay = _paces(graph, own, at, _times(graph, steps, kind.steps))
    found = Read(queries, keys, _by_heads(graph, own, values, steps), decay)
    result = look_up(graph, own, attention, layer, found, scale=1.0)
    result = graph.op("Add", result, graph.op("Mul", values, _shares(graph, own, at)))
    result = graph.op("Mul", result, _opened(graph, gates, kind.gates))
    if kind.normed:
        result = _norm(graph, shape, own, f"{at}.norm.weight", result)
    result = _times(graph, result, kind.result / parts.out_of_attention)
    result = graph.operand(graph.made_full(result))
    return graph.linear(result, f"{at}.out_proj", own.values, shape.hidden)


def _project(
    graph: GraphBuilder, shape: DecoderShape, own: Deltas, at: str, x: ir.Value
) -> Sequence[ir.Value]:
    """Gates, what goes into the convolution, and steps before they are bent."""
    assert shape.recurrent is not None
    outer = {"gates": own.values, "mixed": shape.recurrent.channels, "steps": own.heads}
    rows = {f"{at}.in_proj.{name}.weight": width for name, width in outer.items()}
    graph.tensors.divide(f"{at}.in_proj.weight", rows)
    rounded = {f"{at}.in_proj.{name}": outer[name] for name in ("gates", "mixed")}
    gates, mixed = graph.linears(x, rounded, shape.hidden)
    steps = graph.linear_in_full(x, f"{at}.in_proj.steps", shape.hidden, own.heads)
    return gates, mixed, steps


def _paces(graph: GraphBuilder, own: Deltas, at: str, steps: ir.Value) -> tuple[ir.Value, ir.Value]:
    """How much of a token is learned, and the logarithm of what is left of the state: [B, S, heads]
    each. Of small steps the kernel for gates, which has both, gives a few digits alone."""
    bias = experts.vector(graph, f"{at}.dt_bias", own.heads)
    bent = graph.op("Softplus", graph.op("Add", steps, bias))
    speeds = np.negative(np.exp(graph.tensors.vector(f"{at}.A_log", own.heads)))
    pace = graph.floats(f"{at}.speeds", (own.heads,), [speeds])
    return bent, graph.op("Mul", bent, pace)


def _opened(graph: GraphBuilder, gates: ir.Value, factor: float) -> ir.Value:
    """What is let through of the result, in 32 bits, by gates times `factor`."""
    return ACTIVATIONS["silu"](graph, _times(graph, graph.full(gates), factor), 1.0)


def _times(graph: GraphBuilder, x: ir.Value, factor: float) -> ir.Value:
    """x * factor, in 32 bits."""
    return x if factor == 1 else graph.op("Mul", x, graph.constant([factor]))


def _by_heads(graph: GraphBuilder, own: Deltas, x: ir.Value, factors: ir.Value) -> ir.Value:
    """x [B, S, values], each head's numbers times its factor of [B, S, heads]."""
    heads = graph.op("Reshape", x, graph.constant([0, 0, own.heads, own.value_dim]))
    product = graph.op("Mul", heads, graph.op("Unsqueeze", factors, graph.constant([-1])))
    return graph.op("Reshape", product, graph.constant([0, 0, own.values]))


def _shares(graph: GraphBuilder, own: Deltas, at: str) -> ir.Value:
    """Of values that go to the result past the state, [values]."""
    shares = np.repeat(graph.tensors.vector(f"{at}.D", own.heads), own.value_dim)
    return graph.floats(f"{at}.shares", (own.values,), [shares])


def _norm(
    graph: GraphBuilder, shape: DecoderShape, own: Deltas, name: str, x: ir.Value
) -> ir.Value:
    """RMS norm of x [B, S, values] in groups of heads that share a key; gains [values]."""
    width = own.values // own.key_heads
    groups = graph.op("Reshape", x, graph.constant([0, 0, own.key_heads, width]))
    ones = graph.array(f"const.ones.{width}", np.ones(width, np.float32))
    normed = graph.op(
        "SimplifiedLayerNormalization", groups, ones, axis=-1, epsilon=shape.epsilon, stash_type=1
    )
    normed = graph.op("Reshape", normed, graph.constant([0, 0, own.values]))
    return graph.op("Mul", normed, experts.vector(graph, name, own.values))
