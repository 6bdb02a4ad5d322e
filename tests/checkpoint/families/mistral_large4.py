"""Mistral Large 4 with eyes: layers that turn and layers that do not, indices and latents that are
shared, and queries that grow."""

from __future__ import annotations

from transformers import AutoModelForImageTextToText

from tests.checkpoint.drawn import TINY, drawn_model

TEXT = {
    **TINY,
    "model_type": "mistral_large4_text",
    "hidden_act": "silu",
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "index_topk": 24,
    "index_n_heads": 20,
    "index_head_dim": 32,
    "indexer_types": ["full", "shared", "full", "full", "shared"],
    "no_rope_layers": [1, 1, 0, 1, 1],
    "kv_source_layers": [0, 0, 2, 0, 4],
    "final_logit_softcapping": 30.0,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": 1.0,
    },
}
_SIGHT = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 1,
    "image_size": 28,
    "patch_size": 14,
}
MISTRAL_LARGE4 = {
    "architectures": ["MistralLarge4ForConditionalGeneration"],
    "model_type": "mistral_large4",
    "image_token_index": 10,
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "tie_word_embeddings": False,
    "text_config": TEXT,
    "vision_config": _SIGHT,
    "vision_feature_layer": -1,
}

MODELS = {
    "mistral-large4": drawn_model(
        MISTRAL_LARGE4, main=True, experts=True, model=AutoModelForImageTextToText
    ),
}
