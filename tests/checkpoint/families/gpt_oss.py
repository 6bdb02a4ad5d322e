"""gpt-oss: sinks, windows, biases everywhere, clamped experts; in floats and as published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from tests.checkpoint.drawn import TINY, draw_checkpoint, drawn_model
from tests.checkpoint.families import Model

GPT_OSS = {
    **TINY,
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_act": "silu",
    "num_hidden_layers": 3,
    "head_dim": 32,
    "intermediate_size": 96,
    "attention_bias": True,
    "sliding_window": 24,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "swiglu_limit": 1.5,
    "rope_theta": 150_000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 8.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 64,
    },
    "output_router_logits": False,
    "router_aux_loss_coef": 0.9,
}
PUBLISHED = {
    "experts_per_token": 3,
    "initial_context_length": 64,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    },
}
_GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def write_published(directory: Path) -> Path:
    """As gpt-oss-20b is: experts in MXFP4, the rest in floats."""
    draw_checkpoint(directory, GPT_OSS, seed=1)
    file = directory / "model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        blocks, scales = to_mxfp4(weights.pop(name).transpose(0, 2, 1))
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(weights, file, {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | PUBLISHED))
    return directory


def to_mxfp4(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Floats [..., n * 32] -> nearest 4-bit floats, two a byte, and their groups' exponents."""
    groups = values.reshape(*values.shape[:-1], -1, 32)
    _, exponents = np.frexp(np.abs(groups).max(-1))
    exponents -= 3  # a peak of 4 to 8
    scaled = np.ldexp(groups, -exponents[..., None])
    nearest = np.abs(np.abs(scaled)[..., None] - _GRID).argmin(-1)
    codes = (nearest + 8 * (scaled < 0)).astype(np.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents + 127).astype(np.uint8)


MODELS = {
    "gpt-oss": drawn_model(GPT_OSS, main=True, experts=True),
    "gpt-oss-published": Model(write_published, experts=True),
}
