"""Apertus: an activation with numbers of its own in each layer."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

APERTUS = {
    **TINY,
    "architectures": ["ApertusForCausalLM"],
    "model_type": "apertus",
    "hidden_act": "xielu",
    "attention_bias": False,
    "hidden_dropout": 0.0,
    "mlp_bias": False,
    "post_norm": False,
    "qk_norm": True,
    "rope_scaling": {
        "rope_type": "llama3",
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "rope_theta": 12_000_000,
}

MODELS = {"apertus": drawn_model(APERTUS, main=True)}
