"""Seed-OSS: biases on queries, keys and values."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

SEED_OSS = {
    **TINY,
    "architectures": ["SeedOssForCausalLM"],
    "model_type": "seed_oss",
    "head_dim": 32,
    "hidden_act": "silu",
    "attention_bias": True,
    "attention_out_bias": False,
    "mlp_bias": False,
    "residual_dropout": 0.1,
    "rope_theta": 10_000_000.0,
    "rope_scaling": {"rope_type": "default"},
}

MODELS = {"seed-oss": drawn_model(SEED_OSS)}
