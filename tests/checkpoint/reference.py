"""The reference implementations, loaded from the same checkpoint directories."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Mxfp4Config
from transformers.utils import logging as transformers_logging

from installer.checkpoint.quantize import quantize_rows

Floats = npt.NDArray[np.float32]

torch.set_num_threads(1)  # the machine runs other tests beside these
transformers_logging.disable_progress_bar()
logging.getLogger("transformers").setLevel(logging.ERROR)


class ReferenceDecoder:
    """Transformers in fp32."""

    def __init__(self, checkpoint: Path) -> None:
        config = AutoConfig.from_pretrained(checkpoint)
        options: dict[str, Any] = {}
        if (getattr(config, "quantization_config", None) or {}).get("quant_method") == "mxfp4":
            options["quantization_config"] = Mxfp4Config(dequantize=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, **options
        )
        self.model = model.eval()

    def logits(self, tokens: Sequence[int]) -> Floats:
        """Logits after each token, [tokens, vocab]."""
        with torch.inference_mode():
            result: Floats = self.model(torch.tensor([list(tokens)])).logits[0].numpy()
        return result

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The `count` tokens that greedy decoding appends, with the reference's own cache."""
        appended: list[int] = []
        given, cache = list(tokens), None
        with torch.inference_mode():
            for _ in range(count):
                out = self.model(torch.tensor([given]), past_key_values=cache, use_cache=True)
                given, cache = [int(out.logits[0, -1].argmax())], out.past_key_values
                appended += given
        return appended


class ReferenceEncoder:
    """BERT in fp32 with sentence-transformers' pooling, written out."""

    def __init__(self, checkpoint: Path, *, pooling: str = "mean", normalize: bool = True) -> None:
        model: Any = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
        self.model = model.eval()
        self._pooling, self._normalize = pooling, normalize

    def embed(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> Floats:
        """Embeddings [batch, dimensions]."""
        with torch.inference_mode():
            states = self.model(torch.tensor(ids), attention_mask=torch.tensor(mask))
        hidden: Floats = states.last_hidden_state.numpy()
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        if self._normalize:
            pooled = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return pooled.astype(np.float32)


def with_rounded_rows(checkpoint: Path, target: Path) -> Path:
    """A copy of `checkpoint` in `target` whose matrices are rounded by rows, as `w8a8` does it."""
    shutil.copytree(checkpoint, target)
    weights: dict[str, npt.NDArray[Any]] = load_file(target / "model.safetensors")
    for name, values in weights.items():
        if values.ndim == 2:
            integers, scales = quantize_rows(values)
            weights[name] = integers * scales[:, None]
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target
