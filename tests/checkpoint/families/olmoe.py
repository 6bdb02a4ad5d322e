"""OLMoE: norms over all heads; the chosen ones' weights add up to one or not."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

OLMOE = {
    **TINY,
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    "hidden_act": "silu",
    "attention_bias": False,
    "clip_qkv": None,
    "intermediate_size": 32,
    "norm_topk_prob": False,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10_000.0,
    "router_aux_loss_coef": 0.01,
}

MODELS = {
    "olmoe": drawn_model(OLMOE, main=True, experts=True),
    "olmoe-adding-up": drawn_model(OLMOE, {"norm_topk_prob": True}, experts=True),
}
