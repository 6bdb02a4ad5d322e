"""Qwen2 with experts, and one for all behind a gate."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

QWEN2_MOE = {
    **TINY,
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "hidden_act": "silu",
    "rope_theta": 1_000_000.0,
    "use_sliding_window": False,
    "sliding_window": 32,
    "max_window_layers": 1,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 96,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
PARTLY = {"num_hidden_layers": 3, "norm_topk_prob": True, "mlp_only_layers": [1]}

MODELS = {
    "qwen2-moe": drawn_model(QWEN2_MOE, main=True, experts=True),
    "qwen2-moe-partly": drawn_model(QWEN2_MOE, PARTLY, experts=True),
}
