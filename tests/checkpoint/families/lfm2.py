"""LFM2, dense and with experts, and LFM3: short convolutions among layers that attend."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

_ALIKE = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "conv", "conv"],
    "norm_eps": 1e-5,
    "conv_L_cache": 3,
    "conv_bias": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
_TINY = {key: value for key, value in TINY.items() if key != "rms_norm_eps"}
DENSE = {
    **_TINY,
    **_ALIKE,
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "intermediate_size": 192,
    "block_multiple_of": 32,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
}
EXPERTS = {
    **_TINY,
    **_ALIKE,
    "architectures": ["Lfm2MoeForCausalLM"],
    "model_type": "lfm2_moe",
    "moe_intermediate_size": 64,
    "num_dense_layers": 1,
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "use_expert_bias": True,
}
LFM3 = {
    **_TINY,
    "architectures": ["Lfm3ForCausalLM"],
    "model_type": "lfm3",
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "conv", "sliding_attention"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 24,
    "head_dim": 32,
    "norm_eps": 1e-5,
    "conv_L_cache": 7,
    "rope_parameters": {
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": 1_000_000.0,
            "partial_rotary_factor": 0.5,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}

MODELS = {
    "lfm2": drawn_model(DENSE, main=True, recurrent=True),
    "lfm2-moe": drawn_model(EXPERTS, main=True, experts=True, recurrent=True),
    "lfm3": drawn_model(LFM3, main=True, recurrent=True),
}
