"""The embeddings model in its reference implementation, for retrieval while training.

On the node the same model answers `/v1/embeddings`. Its checkpoint is fetched, not committed:
scripts/fetch-minilm puts it into .build/minilm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from guide_recipe.sources import GUIDE
from installer.ask.reader import Vectors

Embed = Callable[[Sequence[str]], Vectors]
"""Texts in, unit vectors out: float32 [texts, dimensions]."""

CHECKPOINT = GUIDE.parent.parent / ".build/minilm"
_BATCH = 64
_MAX_TOKENS = 256


class ReferenceEncoder:
    """all-MiniLM-L6-v2: mean over the last hidden states, scaled to length 1."""

    def __init__(self, checkpoint: Path = CHECKPOINT) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._model = AutoModel.from_pretrained(checkpoint).eval()

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """float32 [texts, dimensions]. Texts of like length go together, for padding costs time."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors: list[Vectors] = [np.empty(0, np.float32)] * len(texts)
        for first in range(0, len(order), _BATCH):
            together = order[first : first + _BATCH]
            embedded = self._embed([texts[i] for i in together])
            for i, vector in zip(together, embedded, strict=True):
                vectors[i] = vector
        return np.stack(vectors)

    @torch.no_grad()
    def _embed(self, texts: Sequence[str]) -> Vectors:
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        )
        states = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(states.dtype)
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
        vectors: Vectors = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return vectors
