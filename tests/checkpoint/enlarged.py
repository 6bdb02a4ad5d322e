"""Checkpoints whose numbers outgrow 16-bit floats, and what their references compute.

Embeddings and what layers add are some thousand times as large, and so are the halves of
feed-forwards that are not activated. Norms undo the one, the way down undoes the other, so logits
stay what they were, while what is between reaches some hundred thousand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

LARGEST = float(np.finfo(np.float16).max)
STREAM = UP = 2.0**14
FACTORS: Mapping[str, float] = {
    r"embed_tokens\.weight": STREAM,
    r"(o|out)_proj\.(weight|bias)": STREAM,
    r"(up_proj|experts\.\d+\.w3)\.weight": UP,
    r"(down_proj|experts\.\d+\.w2)\.weight": STREAM / UP,
    # Here gates and ups are clamped or stored together, and only what comes out is large.
    r"experts\.down_proj(_bias)?": STREAM,
    r"(shared_mlp|block_sparse_moe)\.output_linear\.weight": STREAM,
}
"""What the names of a decoder's tensors end with, and what they are multiplied by."""
SQUARES: Mapping[str, float] = {
    r"embeddings\.weight": STREAM,
    r"(o|out)_proj\.weight": STREAM,
    r"up_proj\.weight": 2.0**6,
}
"""Of decoders whose feed-forwards square what comes up."""
UNNORMED: Mapping[str, float] = {
    r"embed_tokens\.weight": STREAM / 4,
    r"(o|out)_proj\.weight": STREAM / 4,
    r"up_proj\.weight": UP,
    r"down_proj\.weight": STREAM / 4 / UP,
}
"""Of decoders with states whose results are not normed, and so are large themselves."""
BEHIND_NORMS: Mapping[str, float] = {
    r"(post_attention|post_feedforward|post_per_layer_input)\w*norm\.weight": 8 * STREAM,
    r"up_proj\.weight": UP,
}
"""Of decoders that norm all that is added to the stream."""
BETWEEN_NORMS: Mapping[str, float] = {
    r"embed_tokens\.weight": STREAM,
    r"(post_attention|post_mlp)_layernorm\.weight": STREAM,
    r"up_proj\.weight": UP,
}
"""The same where the stream has 16 bits in a graph of 16."""


def enlarge(directory: Path, factors: Mapping[str, float] = FACTORS) -> Path:
    """Multiply the checkpoint's tensors; a table of both ends, and a tower but for what `factors`
    say of its last layers, stay as they are."""
    config = json.loads((directory / "config.json").read_text())
    tied = config.get("tie_word_embeddings", True)
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        for name, values in tensors.items():
            for end, factor in factors.items():
                if re.search(rf"(^|\.){end}$", name) and not (tied and "embed" in name):
                    tensors[name] = (values * values.dtype.type(factor)).astype(values.dtype)
            if name.endswith("gate_up_proj.weight"):
                values[len(values) // 2 :] *= values.dtype.type(UP)
        save_file(tensors, file, {"format": "pt"})
    return directory


class Peaks:
    """The largest numbers that a reference has computed, between layers and on the way down."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.stream = self.product = 0.0
        for name, module in model.named_modules():
            if type(module).__name__.endswith(("DecoderLayer", "EncoderLayer", "HBlock")):
                module.register_forward_hook(self._between)
            if name.endswith("down_proj") and isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(self._down)

    def _between(self, _module: object, _given: object, out: Any) -> None:
        states = out[0] if isinstance(out, tuple) else out
        self.stream = max(self.stream, float(states.abs().max()))

    def _down(self, _module: object, given: Any) -> None:
        self.product = max(self.product, float(given[0].abs().max()))
