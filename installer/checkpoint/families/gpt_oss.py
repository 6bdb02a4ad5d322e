"""gpt-oss: attention with sinks, every other layer through a window, and experts in 4-bit floats.

A sink is a number for each head that takes part in the softmax and has no value. Experts multiply
gate * sigmoid(1.702 * gate) with up + 1, both clamped. Published in MXFP4 (packed/mxfp4.py);
checkpoints in floats have the same tensors transposed. Reference: gpt-oss-120b & gpt-oss-20b Model
Card (2025), `GptOssForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.expert_weights import ExpertWeights, TransposedStacks
from installer.checkpoint.graph import decoder, decoder_shape, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form, Heads
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.kinds import FULL, SLIDING, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import ORIGINAL, read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings
from installer.checkpoint.tensors import Tensors

_THETA = 150_000.0
_SCALINGS = ("rope_parameters", "rope_scaling")


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["GptOssForCausalLM"])
    config.expect("attention_bias", True)
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    mixture = Mixture(
        experts=config.integer("num_local_experts"),
        chosen=config.integer("num_experts_per_tok"),
        inner=shape.inner,
        alpha=config.number("swiglu_alpha", 1.702),
        beta=1.0,
        limit=config.number("swiglu_limit", 7.0),
        bias=True,
    )
    config.expect("experts_per_token", mixture.chosen)
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return replace(shape, mixture=mixture, sinks=True, output_bias=True)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, _project, _feed_forward)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """Layers of both kinds, the first with a window."""
    layers, window = config.integer("num_hidden_layers"), config.integer("sliding_window")
    if not any(key in config for key in _SCALINGS):
        # The reference would take one of its own.
        raise CheckpointError("config.json has no 'rope_scaling'", hint="it is incomplete")
    for key in _SCALINGS:
        scaling = config.section(key)
        if scaling is not None and ORIGINAL in scaling:
            config.expect("initial_context_length", scaling.integer(ORIGINAL))
    rope = read_rope(config, head_dim, theta=_THETA)
    kinds = {SLIDING: LayerKind(rope, window), FULL: LayerKind(rope)}
    return read_kinds(config, kinds, [FULL if i % 2 else SLIDING for i in range(layers)])


def _project(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> Heads:
    return decoder.project(graph, shape, at, x, bias=True)


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    mixture, divided = shape.mixture, shape.divisors(graph).into_feed_forward
    assert mixture is not None
    name = f"{at}.mlp.router"
    scores = experts.router(
        graph, x, name, shape.hidden, mixture.experts, bias=True, divided=divided
    )
    choice = experts.choose_by_softmax(graph, scores, mixture)
    stored = f"{at}.mlp.experts"
    weights = _weights(graph.tensors, stored)
    return experts.mix(graph, x, choice, mixture, weights, shape.hidden, stored, divided=divided)


def _weights(tensors: Tensors, at: str) -> ExpertWeights:
    gate_up, down = f"{at}.gate_up_proj", f"{at}.down_proj"
    biases = f"{gate_up}_bias", f"{down}_bias"
    if tensors.holds(gate_up):
        return TransposedStacks(tensors, (gate_up,), down, biases)
    return ExpertWeights(tensors, (f"{gate_up}.{{}}",), f"{down}.{{}}", biases)
