"""Mixtral, with a window and without."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

MIXTRAL = {
    **TINY,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_act": "silu",
    "rope_theta": 1_000_000.0,
    "intermediate_size": 96,
    "sliding_window": 24,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.02,
    "router_jitter_noise": 0.0,
}
PUBLISHED = {"sliding_window": None, "head_dim": 32}

MODELS = {
    "mixtral": drawn_model(MIXTRAL, main=True, experts=True),
    "mixtral-published": drawn_model(MIXTRAL, PUBLISHED, experts=True),
}
