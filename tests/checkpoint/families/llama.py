"""Llama with every rescaling of angles that is published with such models, and in odd shapes."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

LLAMA = {
    **TINY,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rope_theta": 10_000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
}
ORIGINAL = {"original_max_position_embeddings": 32}
ROPES = {
    "dynamic": {"type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 16.0, **ORIGINAL},
    "yarn-as-deepseek-has-it": {
        "type": "yarn",
        "factor": 16.0,
        **ORIGINAL,
        "beta_fast": 24,
        "beta_slow": 2,
        "mscale": 1.4,
        "mscale_all_dim": 0.7,
    },
    "yarn-not-truncated": {
        "rope_type": "yarn",
        "factor": 16.0,
        **ORIGINAL,
        "beta_fast": 8.0,
        "truncate": False,
        "attention_factor": 1.3,
    },
    "longrope": {
        "rope_type": "longrope",
        **ORIGINAL,
        "factor": 16.0,
        "short_factor": [1.0 + 0.05 * pair for pair in range(8)],
        "long_factor": [1.0 + 1.5 * pair for pair in range(8)],
    },
}
HEADS = {
    "one-head-of-64": {"num_attention_heads": 2, "head_dim": 64, "num_key_value_heads": 1},
    "heads-of-80": {"num_attention_heads": 4, "head_dim": 80, "num_key_value_heads": 4},
    "heads-of-128": {"num_attention_heads": 2, "head_dim": 128, "hidden_size": 96},
    "heads-of-192": {"num_attention_heads": 2, "head_dim": 192, "num_key_value_heads": 1},
}
ODD_VOCABULARY = {"vocab_size": 499, "tie_word_embeddings": True}


MODELS = {
    **{f"llama-{name}": drawn_model(LLAMA, {"rope_scaling": it}) for name, it in ROPES.items()},
    **{f"llama-{name}": drawn_model(LLAMA, it) for name, it in HEADS.items()},
    "llama-vocabulary-of-499": drawn_model(LLAMA, ODD_VOCABULARY, main=True),
}
