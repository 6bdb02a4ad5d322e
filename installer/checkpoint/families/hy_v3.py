"""Hunyuan 3: heads that are normed each, and experts by corrected sigmoids beside one for all.

Tensors have the names of its publisher, or those that the reference library gives them. Layers that
predict further tokens are left out. Reference: Hy3 (2026), `HYV3ForCausalLM`.
"""

from __future__ import annotations

from dataclasses import replace

from installer.checkpoint.families import qwen3
from installer.checkpoint.graph import decoder, decoder_shape, experts, routed
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape, Norms
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.rope import read_rope
from installer.checkpoint.graph.routed import Names, Routed
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_THETA = 11_158_840.0
_PUBLISHED = Names("router.gate", "expert_bias", "shared_mlp")
_WRITTEN = Names("gate", "e_score_correction_bias", "shared_experts")
_PRECISION = (
    *("enable_attention_fp32_softmax", "enable_lm_head_fp32", "enable_moe_fp32_combine"),
    "use_grouped_mm",
)
"""What is to be computed in 32 bits, of which every grade has its own; and by which kernel."""
_TOKENS = ("eod_token_id", "sep_token_id")


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["HYV3ForCausalLM"])
    for key in ("attention_bias", "mlp_bias"):
        config.expect(key, False)
    for key in ("qk_norm", "route_norm", "moe_router_use_sigmoid", "moe_router_enable_expert_bias"):
        config.expect(key, True)
    config.ignore(*_PRECISION, *_TOKENS)
    mixture = _read_mixture(config)
    shape = decoder_shape.read_decoder(config, kinds=_read_kinds)
    config.finish(decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS)
    return replace(shape, mixture=mixture, norms=Norms(heads=True))


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms, of the tensors by the names that there are."""
    routed.leave_out_further(graph, shape)
    mixture = shape.mixture
    assert isinstance(mixture, Routed)
    sparse = min(set(range(shape.layers)) - mixture.dense, default=0)
    published = f"{shape.root}.layers.{sparse}.mlp.{_PUBLISHED.router}.weight"
    names = _PUBLISHED if published in graph.tensors else _WRITTEN
    shape = replace(shape, mixture=replace(mixture, names=names))
    decoder.build_decoder(graph, shape, form, qwen3.project, routed.feed_forward)


def _read_mixture(config: Settings) -> Routed:
    config.expect("expert_hidden_dim", config.integer("moe_intermediate_size"))
    config.assume("n_routed_experts", config.integer("num_experts"))
    config.assume("n_shared_experts", config.whole("num_shared_experts", 1))
    config.assume("routed_scaling_factor", config.number("router_scaling_factor", 2.826))
    dense = routed.read_dense(config, config.whole("first_k_dense_replace", 1))
    return routed.read_routed(config, dense=dense)


def _read_kinds(config: Settings, head_dim: int) -> Kinds:
    rope = read_rope(config, head_dim, theta=_THETA)
    return read_kinds(config, {FULL: LayerKind(rope)}, [FULL] * config.integer("num_hidden_layers"))
