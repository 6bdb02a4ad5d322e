"""MiniMax-M2: heads that turn in part, norms over all heads, and experts chosen by sigmoids.

An expert is chosen by its sigmoid plus a correction that was learned to even out the load, and
weighted by the sigmoid alone. Draft heads (`mtp`) are not built. Reference: MiniMax-M2 (2025),
`MiniMaxM2ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from installer.checkpoint.families import mixtral
from installer.checkpoint.graph import decoder, decoder_shape, experts
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Choice, Mixture
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import Rope, read_rope
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_THETA = 5_000_000.0
_TURNED, _SHARE = "rotary_dim", "partial_rotary_factor"
_DRAFT_KEYS = ("use_mtp", "num_mtp_modules", "mtp_transformer_layers")


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["MiniMaxM2ForCausalLM"])
    config.expect("use_qk_norm", True)
    config.expect("qk_norm_type", "per_layer")
    config.expect("scoring_func", "sigmoid")
    config.expect("use_routing_bias", True)
    config.expect("sliding_window")
    config.expect("shared_intermediate_size", 0)
    config.ignore("shared_moe_mode", "router_jitter_noise", *_DRAFT_KEYS)
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    config.expect("attn_type_list", [1] * shape.layers)
    mixture = Mixture(
        experts=config.integer("num_local_experts"),
        chosen=config.integer("num_experts_per_tok"),
        inner=shape.inner,
    )
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return replace(shape, mixture=mixture)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    decoder.build_decoder(graph, shape, form, decoder.project_normed, _feed_forward)


def read_angles(config: Settings, head_dim: int) -> Rope:
    """How much of a head turns is published as a number, not as a share."""
    if _TURNED in config and _SHARE not in config:
        config.assume(_SHARE, config.integer(_TURNED) / head_dim)
    rope = read_rope(config, head_dim, partial=True, theta=_THETA)
    config.expect(_TURNED, rope.turned)
    return rope


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    """All layers alike."""
    rope = read_angles(config, head_dim)
    return read_kinds(config, {FULL: LayerKind(rope)}, [FULL] * config.integer("num_hidden_layers"))


def _feed_forward(graph: GraphBuilder, shape: DecoderShape, at: str, x: ir.Value) -> ir.Value:
    def choose(scores: ir.Value, mixture: Mixture) -> Choice:
        name = f"{at}.block_sparse_moe.e_score_correction_bias"
        correction = experts.vector(graph, name, mixture.experts)
        return experts.choose_by_sigmoid(graph, scores, correction, mixture)

    return mixtral.mix(graph, shape, at, x, choose)
