"""Mistral with and without a window, and Ministral with layers of both kinds."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoint.drawn import TINY, draw_checkpoint
from tests.checkpoint.families import Model

MISTRAL = {
    **TINY,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "rope_theta": 10_000.0,
    "sliding_window": 24,
}
NEMO = {"sliding_window": None, "head_dim": 32, "hidden_size": 80, "rope_theta": 1e6}
"""Heads that are not the hidden size over their number, no window."""
MINISTRAL = {
    "architectures": ["MinistralForCausalLM"],
    "model_type": "ministral",
    "num_hidden_layers": 3,
    "head_dim": 16,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
}


def _write(**keys: object) -> Model:
    def write(directory: Path) -> Path:
        return draw_checkpoint(directory, {**MISTRAL, **keys})

    return Model(write)


MODELS = {
    "mistral": _write(),
    "mistral-nemo": _write(**NEMO),
    "ministral": _write(**MINISTRAL),
}
