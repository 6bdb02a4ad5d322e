"""Gemma 3: both kinds of layers, each with angles of its own."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

GEMMA3 = {
    **TINY,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 3,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 24,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 20,
    "sliding_window_pattern": 2,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "cache_implementation": "hybrid",
}


_TEXT = {key: value for key, value in GEMMA3.items() if key != "architectures"}
WITH_IMAGES = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": _TEXT,
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
    "boi_token_index": 509,
    "eoi_token_index": 510,
    "image_token_index": 511,
    "initializer_range": 0.02,
}

MODELS = {
    "gemma3": drawn_model(GEMMA3, main=True),
    "gemma3-with-images": drawn_model(WITH_IMAGES),
}
