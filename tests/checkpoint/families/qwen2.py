"""Qwen2 and Qwen2.5 with what only some of their checkpoints have."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoint.drawn import TINY, draw_checkpoint
from tests.checkpoint.families import Model

QWEN2 = {
    **TINY,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rope_theta": 1_000_000.0,
    "use_sliding_window": False,
}
LATE_WINDOWS = {
    "num_hidden_layers": 3,
    "use_sliding_window": True,
    "sliding_window": 17,
    "max_window_layers": 1,
}
YARN = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32}


def _write(**keys: object) -> Model:
    def write(directory: Path) -> Path:
        return draw_checkpoint(directory, {**QWEN2, **keys})

    return Model(write)


MODELS = {
    "qwen2-late-windows": _write(**LATE_WINDOWS),
    "qwen2-yarn": _write(rope_scaling=YARN),
}
