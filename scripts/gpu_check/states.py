"""A tiny Qwen3.5 with random weights, whose heads are as wide as the published ones.

The kernels for running states choose by that width, so a narrower model would try others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bench_peers.checkpoint import TINY, make_checkpoint
from gpu_check.drawn import drawn

_LAYERS = (*["linear_attention"] * 3, "full_attention")
_KEY_HEADS, _HEADS, _WIDTH, _KERNEL = 2, 4, 128, 4
_CHANNELS, _VALUES = (2 * _KEY_HEADS + _HEADS) * _WIDTH, _HEADS * _WIDTH


def write_states(directory: Path) -> Path:
    """Write the checkpoint, with everybody's tokenizer and template, and return the folder."""
    make_checkpoint(TINY, directory)
    file = directory / "config.json"
    config = json.loads(file.read_text()) | {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "num_hidden_layers": len(_LAYERS),
        "layer_types": _LAYERS,
        "linear_conv_kernel_dim": _KERNEL,
        "linear_key_head_dim": _WIDTH,
        "linear_value_head_dim": _WIDTH,
        "linear_num_key_heads": _KEY_HEADS,
        "linear_num_value_heads": _HEADS,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
        },
    }  # fmt: skip
    for key in ("rope_theta", "rope_scaling", "sliding_window"):
        config.pop(key, None)
    file.write_text(json.dumps(config, indent=2))
    random = np.random.default_rng(20_261_128)
    tensors = {
        name: drawn(random, sizes, name.endswith("linear_attn.norm.weight"))
        for name, sizes in _tensors()
    }
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def _tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes as Qwen3.5's publisher has them."""
    hidden, inner, width = TINY.hidden, TINY.intermediate, TINY.head_dim
    yield "model.embed_tokens.weight", (TINY.vocab, hidden)
    yield "model.norm.weight", (hidden,)
    for layer, kind in enumerate(_LAYERS):
        at = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}.{norm}.weight", (hidden,)
        for name in ("gate", "up"):
            yield f"{at}.mlp.{name}_proj.weight", (inner, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, inner)
        if kind == "full_attention":
            widths = {"q": 2 * TINY.heads, "k": TINY.kv_heads, "v": TINY.kv_heads}
            for name, heads in widths.items():
                yield f"{at}.self_attn.{name}_proj.weight", (heads * width, hidden)
            yield f"{at}.self_attn.o_proj.weight", (hidden, TINY.heads * width)
            for name in "qk":
                yield f"{at}.self_attn.{name}_norm.weight", (width,)
            continue
        at += ".linear_attn"
        widths = {"qkv": _CHANNELS, "z": _VALUES, "b": _HEADS, "a": _HEADS}
        for name, outer in widths.items():
            yield f"{at}.in_proj_{name}.weight", (outer, hidden)
        yield f"{at}.conv1d.weight", (_CHANNELS, 1, _KERNEL)
        yield f"{at}.dt_bias", (_HEADS,)
        yield f"{at}.A_log", (_HEADS,)
        yield f"{at}.norm.weight", (_WIDTH,)
        yield f"{at}.out_proj.weight", (hidden, _VALUES)
