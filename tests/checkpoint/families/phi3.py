"""Phi-3 and Phi-4: matrices stored together, heads that turn in part, factors for long contexts."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoint.drawn import TINY, draw_checkpoint
from tests.checkpoint.families import Model

PHI3 = {
    **TINY,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_act": "silu",
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "original_max_position_embeddings": 512,
    "sliding_window": 40,
    "attention_bias": False,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}
HEADS_OF_96 = {"hidden_size": 192, "num_attention_heads": 2, "num_key_value_heads": 2}
PHI4_MINI = {
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
}


def _write(**keys: object) -> Model:
    def write(directory: Path) -> Path:
        return draw_checkpoint(directory, {**PHI3, **keys})

    return Model(write)


MODELS = {
    "phi3": _write(),
    "phi3-heads-of-96": _write(**HEADS_OF_96, sliding_window=None),
    "phi4-mini": _write(**PHI4_MINI, sliding_window=None),
}
