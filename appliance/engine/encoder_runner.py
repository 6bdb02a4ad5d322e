"""Runs an encoder graph: token ids in, one unit vector for each text out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Vectors = npt.NDArray[np.float32]


class EncoderRunner:
    """Texts of one batch are padded to the longest of them; `attention_mask` hides the rest."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    def run(self, batch: Sequence[Sequence[int]]) -> Vectors:
        """Embed a batch of token id lists. Returns [len(batch), dimensions]."""
        width = max(len(ids) for ids in batch)
        input_ids = np.zeros((len(batch), width), np.int64)
        mask = np.zeros((len(batch), width), np.int64)
        for row, ids in enumerate(batch):
            input_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        (vectors,) = self._session.run(
            ["embeddings"], {"input_ids": input_ids, "attention_mask": mask}
        )
        return np.asarray(vectors, np.float32)
