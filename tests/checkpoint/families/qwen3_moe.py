"""Qwen3 with experts: the chosen ones' weights add up to one or not, layers without experts."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

QWEN3_MOE = {
    **TINY,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_act": "silu",
    "head_dim": 32,
    "attention_bias": False,
    "rope_theta": 1_000_000.0,
    "use_sliding_window": False,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 96,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
PARTLY = {"num_hidden_layers": 3, "norm_topk_prob": False, "mlp_only_layers": [1]}

MODELS = {
    "qwen3-moe": drawn_model(QWEN3_MOE, main=True, experts=True),
    "qwen3-moe-partly": drawn_model(QWEN3_MOE, PARTLY, experts=True),
}
