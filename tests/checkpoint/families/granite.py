"""Granite with its multipliers; its hybrids with a state, with experts, with both and neither."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

GRANITE = {
    **TINY,
    "architectures": ["GraniteForCausalLM"],
    "model_type": "granite",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.6,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
}
HYBRID = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "model_type": "granitemoehybrid",
    "layer_types": ["attention"] * 2,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "position_embedding_type": "rope",
    "shared_intermediate_size": 128,
    "intermediate_size": 128,
    "tie_word_embeddings": True,
    "mamba_d_head": 16,
    "mamba_n_heads": 8,
    "mamba_expand": 2,
    "normalization_function": "rmsnorm",
    "mlp_bias": False,
}
WITHOUT_POSITIONS = {"position_embedding_type": "nope"}
STATES = {
    "num_hidden_layers": 4,
    "layer_types": ["mamba", "mamba", "attention", "mamba"],
    "mamba_n_groups": 1,
    "mamba_d_state": 32,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 16,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}
EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 96}
MIXTURE = {
    "architectures": ["GraniteMoeForCausalLM"],
    "model_type": "granitemoe",
    "residual_multiplier": 0.9,
}
SHARED = {
    "architectures": ["GraniteMoeSharedForCausalLM"],
    "model_type": "granitemoeshared",
    "shared_intermediate_size": 64,
    "tie_word_embeddings": True,
}

MODELS = {
    "granite": drawn_model(GRANITE, main=True),
    "granite-hybrid": drawn_model(GRANITE, HYBRID),
    "granite-without-positions": drawn_model(GRANITE, HYBRID, WITHOUT_POSITIONS),
    "granite-states": drawn_model(
        *(GRANITE, HYBRID, WITHOUT_POSITIONS, STATES), main=True, recurrent=True, seed=2
    ),
    "granite-states-moe": drawn_model(
        *(GRANITE, HYBRID, WITHOUT_POSITIONS, STATES, EXPERTS),
        main=True,
        experts=True,
        recurrent=True,
    ),
    "granite-moe": drawn_model(GRANITE, MIXTURE, EXPERTS, experts=True),
    "granite-moe-shared": drawn_model(GRANITE, SHARED, EXPERTS, experts=True),
}
