"""Gemma 4: heads of two sizes, keys taken for values, keys that later layers read, signals."""

from __future__ import annotations

from transformers import AutoModelForImageTextToText

from tests.checkpoint.drawn import TINY, drawn_model

_ROPES = {
    "full_attention": {
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
        "rope_type": "proportional",
    },
    "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
}
GEMMA4 = {
    **TINY,
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "attention_bias": False,
    "attention_k_eq_v": True,
    "enable_moe_block": False,
    "final_logit_softcapping": 3.0,
    "global_head_dim": 64,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "num_global_key_value_heads": 1,
    "num_hidden_layers": 3,
    "num_kv_shared_layers": 0,
    "rope_parameters": _ROPES,
    "sliding_window": 20,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": "vision",
    "use_double_wide_mlp": False,
    "vocab_size_per_layer_input": 512,
}
SMALL = {
    "attention_k_eq_v": False,
    "hidden_size_per_layer_input": 16,
    "layer_types": [
        *("sliding_attention", "full_attention", "sliding_attention"),
        *("sliding_attention", "full_attention", "full_attention"),
    ],
    "num_global_key_value_heads": None,
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 3,
    "use_bidirectional_attention": None,
    "use_double_wide_mlp": True,
}
WIDE = {**GEMMA4, "head_dim": 256, "global_head_dim": 512}
"""With heads as published, of which a GPU's kernels take not all alike."""


def _text(**keys: object) -> dict[str, object]:
    return {k: v for k, v in GEMMA4.items() if k != "architectures"} | keys


WITH_OTHERS = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "model_type": "gemma4",
    "audio_config": None,
    "image_token_id": 505,
    "video_token_id": 506,
    "audio_token_id": 507,
    "boi_token_id": 508,
    "eoi_token_id": 509,
    "boa_token_id": 510,
    "eoa_token_index": 511,
    "text_config": _text(**SMALL),
    "vision_config": {
        "model_type": "gemma4_vision",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 1,
        "position_embedding_size": 16,
    },
}

MODELS = {
    "gemma4": drawn_model(GEMMA4, uneven=True),
    "gemma4-small": drawn_model(GEMMA4, SMALL, main=True, uneven=True),
    "gemma4-with-others": drawn_model(WITH_OTHERS, model=AutoModelForImageTextToText, uneven=True),
}
