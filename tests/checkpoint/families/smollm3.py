"""SmolLM3: some layers know no positions."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

SMOLLM3 = {
    **TINY,
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "num_hidden_layers": 3,
    "head_dim": 32,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "no_rope_layers": [1, 0, 1],
    "no_rope_layer_interval": 2,
    "layer_types": ["full_attention"] * 3,
    "rope_theta": 5_000_000.0,
    "rope_scaling": None,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}

MODELS = {"smollm3": drawn_model(SMOLLM3, main=True)}
