"""Falcon-H1: layers that attend and have a state, whose result is normed or is not."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

FALCON_H1 = {
    **TINY,
    "architectures": ["FalconH1ForCausalLM"],
    "model_type": "falcon_h1",
    "head_dim": 32,
    "mamba_d_ssm": 96,
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 32,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 16,
    "mamba_conv_bias": True,
    "mamba_rms_norm": False,
    "mamba_norm_before_gate": False,
    "rope_theta": 1e11,
    "rope_scaling": None,
    "attention_in_multiplier": 0.8,
    "attention_out_multiplier": 0.9,
    "embedding_multiplier": 5.7,
    "key_multiplier": 0.4,
    "lm_head_multiplier": 0.04,
    "mlp_multipliers": [0.88, 0.59],
    "ssm_in_multiplier": 1.25,
    "ssm_multipliers": [0.35, 0.6, 0.7, 0.5, 0.8],
    "ssm_out_multiplier": 0.7,
}
NORMED = {"mamba_rms_norm": True, "tie_word_embeddings": True}

MODELS = {
    "falcon-h1": drawn_model(FALCON_H1, main=True, recurrent=True),
    "falcon-h1-normed": drawn_model(FALCON_H1, NORMED, recurrent=True),
}
