"""Phi-3 and Phi-4: matrices stored together, heads that turn in part, factors for long contexts."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

PHI3 = {
    **TINY,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_act": "silu",
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "original_max_position_embeddings": 512,
    "sliding_window": 40,
    "attention_bias": False,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}
HEADS_OF_96 = {
    "hidden_size": 192,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "sliding_window": None,
}


def _factors(pairs: int) -> dict[str, object]:
    """As LongRoPE has them, for contexts up to the one of the first training and beyond."""
    return {
        "type": "longrope",
        "short_factor": [1.0 + 0.05 * pair for pair in range(pairs)],
        "long_factor": [1.0 + 1.5 * pair for pair in range(pairs)],
    }


LONGROPE = {"original_max_position_embeddings": 64, "rope_scaling": _factors(8)}
SHORT_LONGROPE = {"original_max_position_embeddings": 512, "rope_scaling": _factors(8)}
"""Nothing beyond what it was trained on first."""
PHI4_MINI = {
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 64,
    "rope_scaling": _factors(24),
    "sliding_window": 100_000,
    "tie_word_embeddings": True,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
}

MODELS = {
    "phi3": drawn_model(PHI3, main=True),
    "phi3-heads-of-96": drawn_model(PHI3, HEADS_OF_96),
    "phi3-longrope": drawn_model(PHI3, LONGROPE),
    "phi3-longrope-short": drawn_model(PHI3, SHORT_LONGROPE),
    "phi4-mini": drawn_model(PHI3, PHI4_MINI, main=True),
}
