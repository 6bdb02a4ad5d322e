"""ERNIE 4.5 with a mixture of experts (text): neighbours of a head turn together.

An expert is chosen by its share of a softmax plus a correction that was learned to even out the
load, and weighted by the share alone; every token goes through the shared ones. Layers that predict
further tokens (`mtp_…`) are not built. Reference: ERNIE 4.5 Technical Report (2025),
`Ernie4_5_MoeForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from installer.checkpoint.expert_weights import matrices
from installer.checkpoint.families import llama
from installer.checkpoint.graph import decoder, decoder_shape, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Choice, Mixture
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_THETA = 500_000.0
_LEAST_SUM = 1e-12
"""What shares are divided by at least; a choice whose shares add up to less is not heard of."""
_TRAINING_KEYS = frozenset({"moe_capacity", "num_nextn_predict_layers"})


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Ernie4_5_MoeForCausalLM"])
    for key in ("use_bias", "is_quantized"):
        config.expect(key, False)
    for key in ("use_rmsnorm", "moe_use_aux_free"):
        config.expect(key, True)
    config.expect("moe_gate", "topk")
    config.expect("moe_norm_min", _LEAST_SUM)
    shape = decoder_shape.read_decoder(config, tied=True, kinds=_read_kinds)
    shape = replace(shape, mixture=_read_mixture(config, shape.layers))
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS | _TRAINING_KEYS)
    return shape


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, llama.project, _feed_forward)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    rope = replace(read_rope(config, head_dim, theta=_THETA), interleaved=True)
    return read_kinds(config, {FULL: LayerKind(rope)}, [FULL] * config.integer("num_hidden_layers"))


def _read_mixture(config: Settings, layers: int) -> Mixture:
    first, step = config.whole("moe_layer_start_index", 1), config.integer("moe_layer_interval", 1)
    last = config.number("moe_layer_end_index", -1)
    last = layers - 1 if last == -1 else last
    inner = config.integer("moe_intermediate_size")
    return Mixture(
        experts=config.integer("moe_num_experts"),
        chosen=config.integer("moe_k"),
        inner=inner,
        dense=frozenset(i for i in range(layers) if (i + 1) % step or not first <= i <= last),
        shared=config.whole("moe_num_shared_experts", 2) * inner,
    )


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    mixture = shape.mixture
    assert mixture is not None
    if mixture.is_dense(at):
        return decoder.swiglu(graph, shape, at, x)
    at, divided = f"{at}.mlp", shape.divisors(graph).into_feed_forward
    name, hidden, stored = f"{at}.gate", shape.hidden, f"{at}.experts"
    scores = experts.router(graph, x, name, hidden, mixture.experts, divided=divided)
    choice = _choose(graph, scores, f"{at}.moe_statics.e_score_correction_bias", mixture)
    weights = matrices(graph.tensors, stored)
    mixed = experts.mix(graph, x, choice, mixture, weights, hidden, stored, divided=divided)
    if not mixture.shared:
        return mixed
    return graph.add(mixed, decoder.gated(graph, shape, x, f"{at}.shared_experts", mixture.shared))


def _choose(graph: GraphBuilder, scores: ir.Value, name: str, mixture: Mixture) -> Choice:
    """The highest shares plus the correction `name` [1, experts]; weights are shares among those
    chosen."""
    size = (1, mixture.experts)
    graph.tensors.expect(name, size)
    correction = graph.floats(name, size, graph.tensors.rows(name))
    corrected = graph.op("Add", graph.op("Softmax", scores, axis=-1), correction)
    _, indices = experts.highest(graph, corrected, mixture.chosen)
    return Choice(indices, graph.op("GatherElements", scores, indices, axis=1))
