"""Mistral Small 3 with eyes, and Ministral 3, whose queries grow with their position."""

from __future__ import annotations

from transformers import AutoModelForImageTextToText

from tests.checkpoint.drawn import TINY, drawn_model
from tests.checkpoint.families.mistral import MISTRAL

_YARN = {
    "rope_type": "yarn",
    "type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.4,
}
MINISTRAL3 = {
    **TINY,
    "architectures": ["Ministral3ForCausalLM"],
    "model_type": "ministral3",
    "hidden_act": "silu",
    "head_dim": 32,
    "rope_parameters": _YARN,
    "sliding_window": None,
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
WITH_IMAGES = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "image_token_index": 10,
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "tie_word_embeddings": False,
    "vision_config": _SIGHT,
    "vision_feature_layer": -1,
}


def _text(config: dict[str, object], **keys: object) -> dict[str, object]:
    return {key: value for key, value in config.items() if key != "architectures"} | keys


_SMALL = {"text_config": _text(MISTRAL, sliding_window=None, head_dim=32)}
_MINI = {"text_config": _text(MINISTRAL3, tie_word_embeddings=True), "tie_word_embeddings": True}

MODELS = {
    "ministral3": drawn_model(MINISTRAL3, main=True),
    "mistral3": drawn_model(WITH_IMAGES, _SMALL, model=AutoModelForImageTextToText),
    "mistral3-ministral3": drawn_model(WITH_IMAGES, _MINI, model=AutoModelForImageTextToText),
}
