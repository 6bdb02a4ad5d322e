"""Qwen2 and Qwen2.5 with what only some of their checkpoints have."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

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


MODELS = {
    "qwen2-late-windows": drawn_model(QWEN2, LATE_WINDOWS, main=True),
    "qwen2-yarn": drawn_model(QWEN2, {"rope_scaling": YARN}),
}
