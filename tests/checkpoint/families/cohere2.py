"""Command R7B: blocks side by side, norms that subtract the mean, layers without positions."""

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

MODELS = {"cohere2": drawn_model(COHERE2, main=True)}
