"""DeepSeek-V4: layers with a window alone, with entries of few tokens that an index finds, and with
entries of many; experts by a table and by a router."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

DEEPSEEK_V4 = {
    **{key: value for key, value in TINY.items() if key != "intermediate_size"},
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "attention_bias": False,
    "bos_token_id": 0,
    "compress_ratios": [0, 4, 128, 4],
    "compress_rope_theta": 160_000,
    "hc_eps": 1e-6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 5,
    "head_dim": 64,
    "hidden_act": "silu",
    "index_head_dim": 32,
    "index_n_heads": 12,  # of fewer, all may be deaf to two entries alike, and none is the better
    "index_topk": 6,  # fewer than the entries of the tests' prompts
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 3,
    "num_hash_layers": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 2,
    "o_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_rope_head_dim": 16,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 128,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "rope_theta": 10_000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 20,
    "swiglu_limit": 2.0,  # so that some gates are clamped
    "topk_method": "noaux_tc",
}
SHORT = {
    "compress_ratios": None,
    "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"],
    "compress_rates": {"compressed_sparse_attention": 3, "heavily_compressed_attention": 12},
    "mlp_layer_types": ["moe", "hash_moe"],
    "num_hash_layers": None,
    "num_hidden_layers": 2,
    "hc_mult": 2,
    "hc_sinkhorn_iters": 20,
    "qk_rope_head_dim": None,
    "partial_rotary_factor": 0.5,
    "rope_scaling": None,
    "sliding_window": 200,
    "index_topk": 100,
    "routed_scaling_factor": 1.0,
}
"""Windows that all of a prompt fits in, other sizes of windows, the reference's own words."""

MODELS = {
    "deepseek-v4": drawn_model(DEEPSEEK_V4, main=True, uneven=True, floats=True, by_processor=True),
    "deepseek-v4-short": drawn_model(
        DEEPSEEK_V4, SHORT, uneven=True, floats=True, by_processor=True
    ),
}
