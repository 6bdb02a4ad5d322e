"""Bamba: Mamba-2 layers among some that attend and turn half of a head."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

BAMBA = {
    **TINY,
    "architectures": ["BambaForCausalLM"],
    "model_type": "bamba",
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "attn_layer_indices": [1],
    "attn_rotary_emb": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": "auto",
    "mamba_n_groups": 2,
    "mamba_d_state": 32,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
}

MODELS = {"bamba": drawn_model(BAMBA, recurrent=True)}
