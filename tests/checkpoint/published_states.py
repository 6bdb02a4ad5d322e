"""config.json of models with Mamba-2 layers, written from what their publishers' files say."""

from __future__ import annotations

from typing import Any

from tests.checkpoint.published_dense import config

_GRANITE: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_multiplier": 0.0078125,
    "embedding_multiplier": 12,
    "init_method": "mup",
    "initializer_range": 0.1,
    "layer_types": ((["mamba"] * 5 + ["attention"]) + ["mamba"] * 4) * 4,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_proj_bias": False,
    "model_type": "granitemoehybrid",
    "normalization_function": "rmsnorm",
    "output_router_logits": False,
    "position_embedding_type": "nope",
    "residual_multiplier": 0.22,
    "rope_scaling": None,
    "rope_theta": 10_000,
    "router_aux_loss_coef": 0.0,
    "tie_word_embeddings": True,
}
GRANITE_H_MICRO = config(
    "GraniteMoeHybrid",
    (2048, 8192, 40, 32, 8, 100_352, 131_072),
    **_GRANITE,
    logits_scaling=8,
    mamba_n_heads=64,
    num_experts_per_tok=0,
    num_local_experts=0,
    shared_intermediate_size=8192,
)
GRANITE_H_TINY = config(
    "GraniteMoeHybrid",
    (1536, 512, 40, 12, 4, 100_352, 131_072),
    **_GRANITE,
    logits_scaling=6,
    mamba_n_heads=48,
    num_experts_per_tok=6,
    num_local_experts=64,
    shared_intermediate_size=1024,
)
GRANITE_H_SMALL = config(
    "GraniteMoeHybrid",
    (4096, 768, 40, 32, 8, 100_352, 131_072),
    **_GRANITE,
    logits_scaling=16,
    mamba_n_heads=128,
    num_experts_per_tok=10,
    num_local_experts=72,
    shared_intermediate_size=1536,
)
