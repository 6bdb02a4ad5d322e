"""Qwen1.5-MoE and Qwen2-57B-A14B: Qwen2's attention, and experts beside one behind a gate.

Every token goes through the shared expert, whose result a sigmoid of the token weighs. Reference:
Qwen2 Technical Report (2024), `Qwen2MoeForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from installer.checkpoint.expert_weights import matrices
from installer.checkpoint.families import qwen2, qwen3_moe
from installer.checkpoint.families.qwen3_moe import FindExperts
from installer.checkpoint.graph import decoder, decoder_shape, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.kinds import read_late_windows
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Qwen2MoeForCausalLM"])
    config.expect("qkv_bias", True)
    # The reference would give a window to every other layer below max_window_layers.
    config.expect("use_sliding_window", False)
    shape = decoder_shape.read_decoder(config, kinds=read_late_windows)
    shape = replace(shape, mixture=read_mixture(config, shape.layers))
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return shape


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, qwen2.project, feed_forward)


def read_mixture(config: Settings, layers: int) -> Mixture:
    """The keys of experts, and the width of the one for all."""
    shared = config.integer("shared_expert_intermediate_size")
    return replace(qwen3_moe.read_mixture(config, layers), shared=shared)


def feed_forward(
    graph: GraphBuilder,
    shape: DecoderShape,
    at: str,
    x: ir.Value,
    weights: FindExperts = matrices,
) -> ir.Value:
    """The chosen experts' results and the shared one's, times its weight."""
    mixture, divided = shape.mixture, shape.divisors(graph).into_feed_forward
    assert mixture is not None
    mixed = qwen3_moe.feed_forward(graph, shape, at, x, weights)
    if mixture.is_dense(at):
        return mixed
    at = f"{at}.mlp.shared_expert"
    shared = decoder.gated(graph, shape, x, at, mixture.shared)
    shared = experts.weigh(graph, x, shared, f"{at}_gate", shape.hidden, divided=divided)
    return graph.add(mixed, shared)
