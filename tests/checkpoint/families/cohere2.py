"""Command R7B: blocks side by side, norms that subtract the mean, layers without positions.

And mixtures with such blocks: by sigmoids and RMS norms, and by a softmax beside one for all.
"""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

COHERE2 = {
    **{key: value for key, value in TINY.items() if key != "rms_norm_eps"},
    "architectures": ["Cohere2ForCausalLM"],
    "model_type": "cohere2",
    "num_hidden_layers": 3,
    "hidden_act": "silu",
    "attention_bias": False,
    "cache_implementation": "hybrid",
    "layer_norm_eps": 1e-5,
    "layer_switch": 2,
    "logit_scale": 0.25,
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rope_theta": 50_000,
    "rope_scaling": None,
    "rotary_pct": 1.0,
    "sliding_window": 24,
    "sliding_window_pattern": 2,
    "tie_word_embeddings": True,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": True,
}
_UNSAID = (
    *("cache_implementation", "layer_switch", "order_of_interleaved_layers"),
    *("use_parallel_embedding", "use_embedding_sharing", "use_gated_activation"),
)
NORTH = {
    **dict.fromkeys(_UNSAID),
    "architectures": ["Cohere2MoeForCausalLM"],
    "model_type": "cohere2_moe",
    "head_dim": 32,
    "intermediate_size": 32,
    "prefix_dense_intermediate_size": 96,
    "prefix_dense_sliding_window_pattern": 1,
    "num_hidden_layers": 4,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_shared_experts": 0,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "expert_selection_fn": "sigmoid",
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-6,
}
PLUS = {
    "num_shared_experts": 2,
    "shared_expert_combination_strategy": "average",
    "expert_selection_fn": "softmax",
    "prefix_dense_sliding_window_pattern": 2,
    "rms_norm_eps": None,
    "norm_topk_prob": True,
}

MODELS = {
    "cohere2": drawn_model(COHERE2, main=True),
    "cohere2-moe": drawn_model(COHERE2, NORTH, main=True, experts=True),
    "cohere2-moe-shared": drawn_model(COHERE2, NORTH, PLUS, experts=True),
}
