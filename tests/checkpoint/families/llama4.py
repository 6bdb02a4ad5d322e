"""Llama 4: chunks that a text leaves, layers without positions whose queries grow, one expert."""

from __future__ import annotations

from transformers import AutoModelForImageTextToText

from tests.checkpoint.drawn import TINY, drawn_model

LLAMA4 = {
    **TINY,
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "hidden_act": "silu",
    "num_hidden_layers": 4,
    "head_dim": 32,
    "attention_bias": False,
    "attention_chunk_size": 24,
    "attn_scale": 0.4,
    "attn_temperature_tuning": True,
    "floor_scale": 16,
    "interleave_moe_layer_step": 2,
    "intermediate_size": 64,
    "intermediate_size_mlp": 128,
    "num_experts_per_tok": 1,
    "num_local_experts": 8,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    },
    "use_qk_norm": True,
}
_TEXT = {
    **{key: value for key, value in LLAMA4.items() if key != "architectures"},
    "num_hidden_layers": 2,
    "interleave_moe_layer_step": 1,
    "no_rope_layers": [1, 0],
    "rope_scaling": None,
    "use_qk_norm": False,
}
WITH_IMAGES = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "model_type": "llama4",
    "boi_token_index": 509,
    "eoi_token_index": 510,
    "image_token_index": 511,
    "text_config": _TEXT,
    "vision_config": {
        "model_type": "llama4_vision_model",
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "image_size": 28,
        "patch_size": 14,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    },
}

MODELS = {
    "llama4": drawn_model(LLAMA4, main=True, experts=True),
    "llama4-with-images": drawn_model(WITH_IMAGES, model=AutoModelForImageTextToText, experts=True),
}
