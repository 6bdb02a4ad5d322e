"""ERNIE 4.5: neighbours turn together; experts among some layers, beside shared ones and alone."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

ERNIE = {
    **TINY,
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "model_type": "ernie4_5_moe",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_bias": False,
    "use_rmsnorm": True,
    "rope_theta": 500_000.0,
    "moe_capacity": [16, 16, 16],
    "moe_gate": "topk",
    "moe_intermediate_size": 32,
    "moe_k": 4,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "moe_layer_start_index": 1,
    "moe_num_experts": 16,
    "moe_num_shared_experts": 2,
    "moe_use_aux_free": True,
}
BETWEEN = {
    "num_hidden_layers": 6,
    "moe_layer_end_index": 3,
    "moe_layer_interval": 2,
    "moe_num_shared_experts": 0,
    "tie_word_embeddings": True,
}
"""Experts in the layers 1 and 3."""

MODELS = {
    "ernie4.5-moe": drawn_model(ERNIE, main=True, experts=True),
    "ernie4.5-moe-between": drawn_model(ERNIE, BETWEEN, experts=True),
}
