"""Falcon-H1: every layer attends and has a Mamba-2 layer beside it, then a gated feed-forward.

What each reads and gives is multiplied by numbers of config.json. Those of queries, keys and the
convolution go into numbers that are there; the others are multiplied in front of the next linear
layer. Reference: Falcon-H1 (2025); `FalconH1ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from installer.checkpoint.families import llama
from installer.checkpoint.graph import decoder, decoder_shape, state_space
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Attention, Form
from installer.checkpoint.graph.decoder_shape import AroundDecoder, DecoderShape, Norms
from installer.checkpoint.graph.recurrent import Recurrent
from installer.checkpoint.graph.state_space import Kind
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_NORMS = Norms("input_layernorm", "pre_ff_layernorm", last="final_layernorm")
_HARMLESS = ("mlp_expansion_factor", "num_logits_to_keep")


@dataclass(frozen=True, slots=True)
class FalconShape(AroundDecoder):
    """A decoder's numbers, and what else is multiplied.

    Attributes:
        kind: of its Mamba-2 layers.
        attended: what heads have read.
        gates, product: those of a feed-forward, and what goes down.
    """

    kind: Kind
    attended: float
    gates: float
    product: float


def read(checkpoint: Checkpoint) -> FalconShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["FalconH1ForCausalLM"])
    for bias in ("attention_bias", "mlp_bias", "projectors_bias"):
        config.expect(bias, False)
    config.expect("mamba_use_mlp", True)
    config.ignore(*_HARMLESS)
    shape = decoder_shape.read_decoder(config)
    opened, attended = (config.number(f"attention_{n}_multiplier", 1.0) for n in ("in", "out"))
    gates, product = _numbers(config, "mlp_multipliers", 2)
    shape = replace(
        shape,
        norms=_NORMS,
        scale=shape.scale * config.number("key_multiplier", 1.0) * opened**2,
        embedding_scale=config.number("embedding_multiplier", 1.0),
        score_scale=config.number("lm_head_multiplier", 1.0),
        recurrent=_read_recurrent(config, shape),
    )
    kind = _read_kind(config)
    config.finish(decoder_shape.HARMLESS_KEYS)
    return FalconShape(shape, kind, attended * opened, gates, gates * product)


def build(graph: GraphBuilder, shape: FalconShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    mix, feed_forward = partial(_mix, own=shape), partial(_feed_forward, own=shape)
    decoder.build_decoder(graph, shape.decoder, form, llama.project, feed_forward, recur=mix)


def _mix(
    graph: GraphBuilder,
    shape: DecoderShape,
    attention: Attention,
    layer: int,
    at: str,
    x: ir.Value,
    *,
    own: FalconShape,
) -> ir.Value:
    """What both add to the stream."""
    remembered = state_space.mix(graph, shape, attention, layer, at, x, kind=own.kind)
    attended = attention.attend(layer, llama.project(graph, shape, at, x))
    attended = graph.divide(attended, 1 / own.attended)
    return graph.add(remembered, decoder.conclude_plainly(graph, shape, at, attended))


def _feed_forward(
    graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value, *, own: FalconShape
) -> ir.Value:
    """down(silu(gate(x) * gates) * up(x)) times a number."""
    by, at = shape.divisors(graph).into_feed_forward, f"{at}.feed_forward"
    names = (f"{at}.gate_proj", f"{at}.up_proj")
    # Of gates that are too large by a factor, what they let through is too small by it.
    by = by * own.gates
    product, scale = graph.gated(x, *names, shape.hidden, shape.inner, "silu", divided=by)
    product = graph.divide(product, 1 / own.product)
    return graph.linear(product, f"{at}.down_proj", shape.inner, shape.hidden, scale=scale)


def _numbers(config: Settings, key: str, count: int) -> tuple[float, ...]:
    return config.numbers(key, count) if key in config else (1.0,) * count


def _read_kind(config: Settings) -> Kind:
    normed = config.flag("mamba_rms_norm", False)
    if normed:
        config.assume("mamba_norm_before_gate", True)
        config.expect("mamba_norm_before_gate", False)
    config.ignore("mamba_norm_before_gate")
    into = config.number("ssm_in_multiplier", 1.0)
    gates, values, keys, queries, steps = _numbers(config, "ssm_multipliers", 5)
    return Kind(
        *("mamba", normed),
        gates=into * gates,
        values=into * values,
        keys=into * keys,
        queries=into * queries,
        steps=into * steps,
        result=config.number("ssm_out_multiplier", 1.0),
    )


def _read_recurrent(config: Settings, shape: DecoderShape) -> Recurrent:
    inner = config.integer("mamba_expand", 2) * shape.hidden
    inner = config.integer("mamba_d_ssm", inner)
    own = state_space.read(config, frozenset(range(shape.layers)), inner)
    return replace(own, beside=True)
