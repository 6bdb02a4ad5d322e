"""LFM2 with a mixture of experts: chosen by sigmoids with a correction, behind two dense layers.

Reference: `Lfm2MoeForCausalLM` (2025).
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from installer.checkpoint.expert_weights import ExpertWeights, HalvedRows
from installer.checkpoint.families import lfm2
from installer.checkpoint.graph import decoder_shape, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.tensors import Tensors

_DENSE = 2
"""Leading layers without experts, unless said otherwise."""


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Lfm2MoeForCausalLM"])
    config.expect("norm_topk_prob", True)
    config.expect("routed_scaling_factor", 1.0)
    config.expect("use_expert_bias", True)
    shape = lfm2.read_convolving(config)
    mixture = Mixture(
        experts=config.integer("num_experts"),
        chosen=config.integer("num_experts_per_tok"),
        inner=config.integer("moe_intermediate_size"),
        dense=frozenset(range(config.whole("num_dense_layers", _DENSE))),
    )
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return replace(shape, mixture=mixture)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    lfm2.build_convolving(graph, shape, form, _feed_forward)


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    mixture, divided = shape.mixture, shape.divisors(graph).into_feed_forward
    assert mixture is not None
    if mixture.is_dense(at):
        return lfm2.feed_forward(graph, shape, at, x)
    at, hidden, count = f"{at}.feed_forward", shape.hidden, mixture.experts
    scores = experts.router(graph, x, f"{at}.gate", hidden, count, divided=divided)
    correction = experts.vector(graph, f"{at}.expert_bias", count)
    choice = experts.choose_by_sigmoid(graph, scores, correction, mixture)
    stored = f"{at}.experts"
    weights = _experts(graph.tensors, stored)
    return experts.mix(graph, x, choice, mixture, weights, hidden, stored, divided=divided)


def _experts(tensors: Tensors, at: str) -> ExpertWeights:
    """Apart as published, or stacked as the reference writes them."""
    gate_up, down = f"{at}.gate_up_proj", f"{at}.down_proj"
    if tensors.holds(gate_up):
        return HalvedRows(tensors, (gate_up,), down)
    gate, up, out = (f"{at}.{{}}.{name}.weight" for name in ("w1", "w3", "w2"))
    return ExpertWeights(tensors, (gate, up), out)
