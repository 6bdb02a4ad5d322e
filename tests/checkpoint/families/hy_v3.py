"""Hunyuan 3: heads that are normed each, one feed-forward, then experts by corrected sigmoids."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

HY_V3 = {
    **TINY,
    "architectures": ["HYV3ForCausalLM"],
    "model_type": "hy_v3",
    "hidden_act": "silu",
    "num_hidden_layers": 3,
    "head_dim": 32,
    "attention_bias": False,
    "mlp_bias": False,
    "enable_moe_fp32_combine": True,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "moe_intermediate_size": 32,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_shared_experts": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 11_158_840.0},
    "router_scaling_factor": 2.826,
}

MODELS = {"hy-v3": drawn_model(HY_V3, main=True, experts=True)}
