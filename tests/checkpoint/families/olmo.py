"""OLMo 2 and 3: norms behind the blocks alone, OLMo 3 with windows and two sets of angles; and OLMo
Hybrid, whose layers with a running state have norms in front of theirs."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

OLMO2 = {
    **TINY,
    "architectures": ["Olmo2ForCausalLM"],
    "model_type": "olmo2",
    "hidden_act": "silu",
    "attention_bias": False,
    "rope_theta": 500_000.0,
    "rope_scaling": None,
}
OLMO3 = {
    "architectures": ["Olmo3ForCausalLM"],
    "model_type": "olmo3",
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "sliding_window": 20,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
}
HYBRID = {
    **TINY,
    "architectures": ["OlmoHybridForCausalLM"],
    "model_type": "olmo_hybrid",
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "attention_bias": False,
    "layer_types": [
        *("linear_attention", "full_attention", "linear_attention", "full_attention"),
    ],
    "rope_parameters": {"rope_type": "default", "rope_theta": None},
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 48,
    "linear_allow_neg_eigval": True,
}
TURNED = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}

MODELS = {
    "olmo2": drawn_model(OLMO2, main=True),
    "olmo3": drawn_model(OLMO2, OLMO3, main=True),
    "olmo-hybrid": drawn_model(HYBRID, main=True, recurrent=True),
    "olmo-hybrid-turned": drawn_model(HYBRID, TURNED, recurrent=True),
}
