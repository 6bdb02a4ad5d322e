"""Nemotron-H: layers of one block each, without experts, with them, and with narrowed ones."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

_LEFT_OUT = {"rms_norm_eps", "num_hidden_layers"}
NEMOTRON_H = {
    **{key: value for key, value in TINY.items() if key not in _LEFT_OUT},
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "M-*-M",
    "num_hidden_layers": 5,
    "head_dim": 32,
    "layer_norm_epsilon": 1e-5,
    "mamba_num_heads": 8,
    "mamba_head_dim": 24,
    "ssm_state_size": 32,
    "n_groups": 2,
    "conv_kernel": 4,
    "expand": 2,
    "chunk_size": 16,
    "mlp_hidden_act": "relu2",
    "mamba_hidden_act": "silu",
    "time_step_limit": [0.0, float("inf")],
    "time_step_min": 1e-30,
    "use_conv_bias": True,
}
EXPERTS = {
    "hybrid_override_pattern": "ME*ME",
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "moe_intermediate_size": 96,
    "moe_shared_expert_intermediate_size": 64,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
}
NARROWED = {"moe_latent_size": 32}

MODELS = {
    "nemotron-h": drawn_model(NEMOTRON_H, main=True, recurrent=True),
    "nemotron-h-moe": drawn_model(NEMOTRON_H, EXPERTS, main=True, experts=True, recurrent=True),
    "nemotron-h-latent": drawn_model(NEMOTRON_H, EXPERTS, NARROWED, experts=True, recurrent=True),
}
