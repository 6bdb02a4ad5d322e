"""Kimi K2.5 with eyes: DeepSeek-V3 without groups of experts, as one part of several."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.checkpoint.drawn import draw_checkpoint
from tests.checkpoint.families import Model
from tests.checkpoint.families.deepseek import DEEPSEEK_V3

_SIGHT = {
    "model_type": "kimi_k25_vision",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 14,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
}
KIMI_K25 = {
    "architectures": ["Kimi_K25ForConditionalGeneration"],
    "model_type": "kimi_k25",
    "image_token_id": 500,  # no token of a text
    "video_token_id": 501,
    "vision_start_token_id": 502,
    "vision_end_token_id": 503,
    "projection_hidden_size": 32,
    "tie_word_embeddings": False,
    "text_config": {
        **DEEPSEEK_V3,
        "num_hidden_layers": 2,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "routed_scaling_factor": 2.827,
    },
    "vision_config": _SIGHT,
}
_WRITTEN = {"language_model.model.blocks.": "language_model.model.layers."}
"""What the library calls layers when it writes them, as those of the tower; and the publisher."""


def write_kimi_k25(directory: Path) -> Path:
    """A checkpoint by its publisher's names."""
    draw_checkpoint(directory, KIMI_K25, model=AutoModelForImageTextToText)
    weights = {}
    for name, values in load_file(directory / "model.safetensors").items():
        for written, published in _WRITTEN.items():
            name = name.replace(written, published)
        weights[name] = values
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


MODELS = {"kimi-k2.5": Model(write_kimi_k25, experts=True)}
