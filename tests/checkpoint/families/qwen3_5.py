"""Qwen3.5: layers that attend among layers with a running state, words alone and with images."""

from __future__ import annotations

from transformers import AutoModelForImageTextToText

from tests.checkpoint.drawn import TINY, draw_checkpoint, drawn_model
from tests.checkpoint.families import Model

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
_TEXT = {key: value for key, value in QWEN3_5.items() if key != "architectures"}
WITH_IMAGES = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "text_config": _TEXT,
    "vision_config": {
        "model_type": "qwen3_5_vision",
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
    },
    "image_token_id": 508,
    "video_token_id": 509,
    "vision_start_token_id": 510,
    "vision_end_token_id": 511,
}

MODELS = {
    "qwen3.5": drawn_model(QWEN3_5, main=True, recurrent=True),
    "qwen3.5-moe": drawn_model(QWEN3_5_MOE, main=True, experts=True, recurrent=True),
    "qwen3-next": drawn_model(QWEN3_NEXT, main=True, experts=True, recurrent=True),
    "qwen3.5-with-images": Model(
        lambda directory: draw_checkpoint(
            directory, WITH_IMAGES, model=AutoModelForImageTextToText
        ),
        recurrent=True,
    ),
}
