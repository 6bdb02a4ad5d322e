"""Qwen3.5: layers that attend among layers with a running state.

Those that read images are in tests/vision.
"""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

QWEN3_5 = {
    **TINY,
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 4,
    "hidden_act": "silu",
    "head_dim": 64,
    "attention_bias": False,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000_000.0,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [4, 2, 2],
    },
    "layer_types": [
        *("linear_attention", "full_attention", "linear_attention", "full_attention"),
    ],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 64,
}
_DENSE = {key: value for key, value in QWEN3_5.items() if key != "intermediate_size"}
QWEN3_5_MOE = {
    **_DENSE,
    **_EXPERTS,
    "architectures": ["Qwen3_5MoeForCausalLM"],
    "model_type": "qwen3_5_moe_text",
}
QWEN3_NEXT = {
    **QWEN3_5,
    **_EXPERTS,
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000_000.0,
        "partial_rotary_factor": 0.25,
    },
    "full_attention_interval": 4,
    "layer_types": None,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}

MODELS = {
    "qwen3.5": drawn_model(QWEN3_5, main=True, recurrent=True),
    "qwen3.5-moe": drawn_model(QWEN3_5_MOE, main=True, experts=True, recurrent=True),
    "qwen3-next": drawn_model(QWEN3_NEXT, main=True, experts=True, recurrent=True),
}
