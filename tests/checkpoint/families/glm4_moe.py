"""GLM-4.5: half a head turns; biases, head norms and groups of experts, and none of these.

Its relative: dots.llm1.
"""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

GLM4_MOE = {
    **TINY,
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "hidden_act": "silu",
    "head_dim": 32,
    "attention_bias": True,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.5,
    "rope_theta": 1_000_000.0,
    "rope_scaling": None,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 0,
}
AIR = {
    "num_hidden_layers": 3,
    "attention_bias": False,
    "use_qk_norm": False,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
}
DOTS = {
    "architectures": ["Dots1ForCausalLM"],
    "model_type": "dots1",
    "attention_bias": False,
    "use_qk_norm": None,
    "partial_rotary_factor": None,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 2,
    "num_nextn_predict_layers": None,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "sliding_window": None,
    "max_window_layers": 2,
}

MODELS = {
    "glm4-moe": drawn_model(GLM4_MOE, main=True, experts=True),
    "glm4-moe-air": drawn_model(GLM4_MOE, AIR, experts=True),
    "dots1": drawn_model(GLM4_MOE, DOTS, experts=True),
}
