"""Hunyuan: heads that are normed behind the turning, with experts and without."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

HUNYUAN = {
    **TINY,
    "architectures": ["HunYuanDenseV1ForCausalLM"],
    "model_type": "hunyuan_v1_dense",
    "hidden_act": "silu",
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "use_qk_norm": True,
    "tie_word_embeddings": True,
    "rope_theta": 10_000.0,
    "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
}
A13B = {
    "architectures": ["HunYuanMoEV1ForCausalLM"],
    "model_type": "hunyuan_v1_moe",
    "num_experts": 8,
    "moe_topk": [3, 3],
    "moe_intermediate_size": [64, 64],
    "intermediate_size": 64,
    "num_shared_expert": [1, 1],
    "use_mixed_mlp_moe": True,
}

MODELS = {
    "hunyuan": drawn_model(HUNYUAN),
    "hunyuan-a13b": drawn_model(HUNYUAN, A13B, main=True, experts=True),
}
