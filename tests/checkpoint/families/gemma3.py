"""Gemma 3: both kinds of layers, each with angles of its own."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoint.drawn import TINY, draw_checkpoint
from tests.checkpoint.families import Model

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


def _write(**keys: object) -> Model:
    def write(directory: Path) -> Path:
        return draw_checkpoint(directory, {**GEMMA3, **keys})

    return Model(write)


MODELS = {"gemma3": _write()}
