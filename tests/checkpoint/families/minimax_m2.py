"""MiniMax-M2: heads that turn in part, norms over all heads, experts chosen by sigmoids."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

MINIMAX_M2 = {
    **TINY,
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "hidden_act": "silu",
    "head_dim": 32,
    "rotary_dim": 16,
    "rope_theta": 5_000_000.0,
    "intermediate_size": 96,
    "num_local_experts": 16,
    "num_experts_per_tok": 4,
    "attn_type_list": [1, 1],
    "use_qk_norm": True,
    "qk_norm_type": "per_layer",
    "scoring_func": "sigmoid",
    "use_routing_bias": True,
    "shared_intermediate_size": 0,
    "use_mtp": True,
    "num_mtp_modules": 3,
    "mtp_transformer_layers": 1,
    "router_jitter_noise": 0.0,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}

MODELS = {"minimax-m2": drawn_model(MINIMAX_M2, main=True, experts=True)}
