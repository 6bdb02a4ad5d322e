"""Trinity: gated heads, norms on both sides of blocks, windows beside layers without positions."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

AFMOE = {
    **TINY,
    "architectures": ["AfmoeForCausalLM"],
    "model_type": "afmoe",
    "hidden_act": "silu",
    "num_hidden_layers": 4,
    "head_dim": 32,
    "attention_bias": False,
    "global_attn_every_n_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 24,
    "moe_intermediate_size": 32,
    "mup_enabled": True,
    "num_dense_layers": 1,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_shared_experts": 1,
    "route_scale": 2.826,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}

MODELS = {"afmoe": drawn_model(AFMOE, main=True, experts=True)}
