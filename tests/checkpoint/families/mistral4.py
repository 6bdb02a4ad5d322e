"""Mistral Small 4: latents whose queries grow with their position; also with eyes."""

from __future__ import annotations

from transformers import AutoModelForImageTextToText

from tests.checkpoint.drawn import TINY, drawn_model
from tests.checkpoint.families.mistral3 import WITH_IMAGES

MISTRAL4 = {
    **TINY,
    "architectures": ["Mistral4ForCausalLM"],
    "model_type": "mistral4",
    "hidden_act": "silu",
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "rope_interleave": True,
    "rope_parameters": {
        "rope_type": "yarn",
        "type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 32,
        "max_position_embeddings": 512,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
        "partial_rotary_factor": 0.5,
    },
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}
_TEXT = {key: value for key, value in MISTRAL4.items() if key != "architectures"}

MODELS = {
    "mistral4": drawn_model(MISTRAL4, main=True, experts=True, model=AutoModelForImageTextToText),
    "mistral3-mistral4": drawn_model(
        *(WITH_IMAGES, {"text_config": _TEXT}), experts=True, model=AutoModelForImageTextToText
    ),
}
