"""GLM-4: norms before and behind the blocks, neighbours of half a head turn."""

from __future__ import annotations

from tests.checkpoint.drawn import TINY, drawn_model

GLM4 = {
    **TINY,
    "architectures": ["Glm4ForCausalLM"],
    "model_type": "glm4",
    "head_dim": 32,
    "hidden_act": "silu",
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10_000.0,
}

MODELS = {
    "glm4": drawn_model(GLM4, main=True),
    "glm4-without-biases": drawn_model(GLM4, {"attention_bias": False}),
}
