"""Qwen3 with a mixture of experts: Qwen3's attention, and a softmax router over SwiGLU experts.

Reference: Qwen3 Technical Report (2025), `Qwen3MoeForCausalLM`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from installer.checkpoint.expert_weights import ExpertWeights, matrices
from installer.checkpoint.families import qwen3
from installer.checkpoint.graph import decoder, decoder_shape, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.kinds import read_late_windows
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings
from installer.checkpoint.tensors import Tensors

FindExperts = Callable[[Tensors, str], ExpertWeights]
"""A checkpoint's tensors and the name of a layer's experts -> where their weights lie."""


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Qwen3MoeForCausalLM"])
    config.expect("attention_bias", False)
    # With a window the reference would give it to all layers, whatever max_window_layers says.
    config.expect("use_sliding_window", False)
    shape = decoder_shape.read_decoder(config, kinds=read_late_windows)
    shape = replace(shape, mixture=read_mixture(config, shape.layers))
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return shape


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, qwen3.project, feed_forward)


def read_mixture(config: Settings, layers: int) -> Mixture:
    """The keys of experts, and which layers have none."""
    step, dense = config.integer("decoder_sparse_step", 1), set(config.ids("mlp_only_layers"))
    return Mixture(
        experts=config.integer("num_experts"),
        chosen=config.integer("num_experts_per_tok"),
        inner=config.integer("moe_intermediate_size"),
        dense=frozenset(i for i in range(layers) if i in dense or (i + 1) % step),
        adds_up=config.flag("norm_topk_prob", False),
    )


def feed_forward(
    graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value, weights: FindExperts = matrices
) -> ir.Value:
    """The chosen experts' results; or one feed-forward alone. `weights`: of a layer's experts."""
    mixture, divided = shape.mixture, shape.divisors(graph).into_feed_forward
    assert mixture is not None
    if mixture.is_dense(at):
        return decoder.swiglu(graph, shape, at, x)
    name = f"{at}.mlp.gate"
    scores = experts.router(graph, x, name, shape.hidden, mixture.experts, divided=divided)
    choice = experts.choose_by_softmax(graph, scores, mixture)
    stored, hidden = f"{at}.mlp.experts", shape.hidden
    found = weights(graph.tensors, stored)
    return experts.mix(graph, x, choice, mixture, found, hidden, stored, divided=divided)
