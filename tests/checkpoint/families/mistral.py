"""Mistral with and without a window, and Ministral with layers of both kinds."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

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


MODELS = {
    "mistral": drawn_model(MISTRAL, main=True),
    "mistral-nemo": drawn_model(MISTRAL, NEMO),
    "ministral": drawn_model(MISTRAL, MINISTRAL),
}
