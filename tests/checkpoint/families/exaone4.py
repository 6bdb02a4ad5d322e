"""EXAONE 4: norms behind the blocks and of heads; windows beside layers without positions.

And K-EXAONE, a mixture with norms in front of the blocks.
"""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

EXAONE4 = {
    **TINY,
    "architectures": ["Exaone4ForCausalLM"],
    "model_type": "exaone4",
    "hidden_act": "silu",
    "num_hidden_layers": 4,
    "layer_types": [*["sliding_attention"] * 3, "full_attention"],
    "rope_theta": 1_000_000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    },
    "sliding_window": 20,
    "sliding_window_pattern": 4,
}
SMALL = {
    "head_dim": 32,
    "num_hidden_layers": 2,
    "layer_types": ["full_attention"] * 2,
    "sliding_window": None,
    "sliding_window_pattern": None,
    "tie_word_embeddings": True,
}
K_EXAONE = {
    "architectures": ["ExaoneMoeForCausalLM"],
    "model_type": "exaone_moe",
    "head_dim": 32,
    "rope_scaling": None,
    "sliding_window_pattern": "LLLG",
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
}

MODELS = {
    "exaone4": drawn_model(EXAONE4, main=True),
    "k-exaone": drawn_model(EXAONE4, K_EXAONE, main=True, experts=True),
    "exaone4-small": drawn_model(EXAONE4, SMALL),
}
