"""DeepSeek-V3, V3.2 and V2, GLM-5 and GLM-4.7-Flash: layers with one feed-forward and with
experts, in groups and not, with YaRN and without, reading all tokens and those an index finds."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

DEEPSEEK_V3 = {
    **TINY,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_act": "silu",
    "attention_bias": False,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "ep_size": 1,
    "rope_theta": 10_000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "max_position_embeddings": 256,
}
PLAIN = {
    "q_lora_rank": None,
    "rope_scaling": None,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": False,
    "rope_interleave": False,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
"""Queries from the token itself, halves that turn together, no YaRN, no groups, weights that do not
add up to one."""

DEEPSEEK_V2 = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "scoring_func": "softmax",
    "topk_method": "group_limited_greedy",
    "norm_topk_prob": False,
    "routed_scaling_factor": 2.0,  # where 6 of 160 are chosen, 16 is published
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
}
LITE = {
    **DEEPSEEK_V2,
    "q_lora_rank": None,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "num_hidden_layers": 2,
}
GLM_FLASH = {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "model_type": "glm4_moe_lite",
    "num_hidden_layers": 2,
    "qk_nope_head_dim": 24,
    "v_head_dim": 40,
    "moe_layer_freq": None,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.8,
    "scoring_func": None,
    "partial_rotary_factor": 1.0,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000,
    "rope_scaling": None,
}
DEEPSEEK_V32 = {
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "index_topk": 24,  # fewer than the prompts of the tests have
    "index_n_heads": 20,
    "index_head_dim": 32,
}
GLM_5 = {
    **DEEPSEEK_V32,
    "architectures": ["GlmMoeDsaForCausalLM"],
    "model_type": "glm_moe_dsa",
    "num_hidden_layers": 4,
    "indexer_types": ["full", "shared", "full", "shared"],
    "index_n_heads": 12,
    "q_lora_rank": 64,
    "n_group": 1,
    "topk_group": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000,
    "rope_scaling": None,
}
AXK1 = {
    "architectures": ["AXK1ForCausalLM"],
    "model_type": "axk1",
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}

MODELS = {
    "axk1": drawn_model(DEEPSEEK_V3, AXK1, main=True, experts=True),
    "deepseek-v3": drawn_model(DEEPSEEK_V3, main=True, experts=True),
    "deepseek-v3-plain": drawn_model(DEEPSEEK_V3, PLAIN, experts=True),
    "deepseek-v2": drawn_model(DEEPSEEK_V3, DEEPSEEK_V2, main=True, experts=True),
    "deepseek-v2-lite": drawn_model(DEEPSEEK_V3, LITE, experts=True),
    "deepseek-v32": drawn_model(DEEPSEEK_V3, DEEPSEEK_V32, main=True, experts=True),
    "glm-5": drawn_model(DEEPSEEK_V3, GLM_5, experts=True),
    "glm4-moe-lite": drawn_model(DEEPSEEK_V3, GLM_FLASH, experts=True),
}
