"""A tiny Gemma 4 with random weights, whose heads are as wide as the published ones: 256 and 512.

Kernels for attention choose by that width. Its last layers read earlier ones' keys and values, and
a second signal speaks to each, as in E2B.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bench_peers.checkpoint import TINY, make_checkpoint
from gpu_check.drawn import drawn

_NEAR, _FAR = "sliding_attention", "full_attention"
_LAYERS = (_NEAR, _FAR, _NEAR, _FAR)
_WIDTHS = {_NEAR: 256, _FAR: 512}
_OWN = 2
"""Layers that have keys and values of their own."""
_SIGNAL = 64
_NORMS = (
    *("input_layernorm", "post_attention_layernorm"),
    *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)


def write_wide_heads(directory: Path) -> Path:
    """Write the checkpoint, with everybody's tokenizer and template, and return the folder."""
    make_checkpoint(TINY, directory)
    file = directory / "config.json"
    config = json.loads(file.read_text()) | {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "final_logit_softcapping": 30.0,
        "global_head_dim": _WIDTHS[_FAR],
        "head_dim": _WIDTHS[_NEAR],
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": _SIGNAL,
        "layer_types": _LAYERS,
        "num_hidden_layers": len(_LAYERS),
        "num_kv_shared_layers": len(_LAYERS) - _OWN,
        "rope_parameters": {
            _FAR: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
            _NEAR: {"rope_type": "default", "rope_theta": 1e4},
        },
        "sliding_window": 16,
        "tie_word_embeddings": True,
        "use_double_wide_mlp": True,
        "vocab_size_per_layer_input": TINY.vocab,
    }
    for key in ("hidden_act", "rope_theta", "rope_scaling", "use_sliding_window"):
        config.pop(key, None)
    file.write_text(json.dumps(config, indent=2))
    random = np.random.default_rng(20_261_129)
    tensors = {name: drawn(random, sizes, len(sizes) == 1) for name, sizes in _tensors()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def _tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes as Gemma 4's publisher has them."""
    hidden, signals = TINY.hidden, len(_LAYERS) * _SIGNAL
    yield "model.embed_tokens.weight", (TINY.vocab, hidden)
    yield "model.embed_tokens_per_layer.weight", (TINY.vocab, signals)
    yield "model.per_layer_model_projection.weight", (signals, hidden)
    yield "model.per_layer_projection_norm.weight", (_SIGNAL,)
    yield "model.norm.weight", (hidden,)
    for layer, kind in enumerate(_LAYERS):
        at, width = f"model.layers.{layer}", _WIDTHS[kind]
        for norm in (*_NORMS, "post_per_layer_input_norm"):
            yield f"{at}.{norm}.weight", (hidden,)
        yield f"{at}.layer_scalar", (1,)
        yield f"{at}.per_layer_input_gate.weight", (_SIGNAL, hidden)
        yield f"{at}.per_layer_projection.weight", (hidden, _SIGNAL)
        inner = TINY.intermediate * (1 if layer < _OWN else 2)
        for name in ("gate", "up"):
            yield f"{at}.mlp.{name}_proj.weight", (inner, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, inner)
        at += ".self_attn"
        yield f"{at}.q_proj.weight", (TINY.heads * width, hidden)
        yield f"{at}.q_norm.weight", (width,)
        yield f"{at}.o_proj.weight", (hidden, TINY.heads * width)
        if layer < _OWN:
            for name in "kv":
                yield f"{at}.{name}_proj.weight", (TINY.kv_heads * width, hidden)
            yield f"{at}.k_norm.weight", (width,)
