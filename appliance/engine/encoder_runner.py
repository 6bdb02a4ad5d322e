"""Runs encoder graphs: texts or pairs of texts in, one row of numbers for each out.

On a GPU as on the processor: what goes in and comes out of a batch is some kilobytes, so nothing is
bound there and the runtime copies it (docs/decisions/0260-encoders-on-a-gpu.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Vectors = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a document as one run of tokens.

    Attributes:
        types: 0 for the query's tokens, 1 for the document's; 0 for all where a model has no types.
    """

    ids: Sequence[int]
    types: Sequence[int]

    def __len__(self) -> int:
        return len(self.ids)


class EncoderRunner:
    """Texts of one batch are padded to the longest of them; `attention_mask` hides the rest."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    def run(self, batch: Sequence[Sequence[int]]) -> Vectors:
        """Embed a batch of token id lists. Returns [len(batch), dimensions]."""
        feed = {"input_ids": _padded(batch), "attention_mask": _mask(batch)}
        (vectors,) = self._session.run(["embeddings"], feed)
        return np.asarray(vectors, np.float32)


class PairRunner:
    """The same for pairs; a graph without an input for token types is given none."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._inputs = {entry.name for entry in session.get_inputs()}

    def run(self, batch: Sequence[Pair]) -> Vectors:
        """Score a batch of pairs. Returns [len(batch)]."""
        ids = [pair.ids for pair in batch]
        feed = {"input_ids": _padded(ids), "attention_mask": _mask(ids)}
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = _padded([pair.types for pair in batch])
        (scores,) = self._session.run(["scores"], feed)
        return np.asarray(scores, np.float32)


def _padded(rows: Sequence[Sequence[int]]) -> _Ints:
    """The rows with zeros at their right."""
    padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _mask(rows: Sequence[Sequence[int]]) -> _Ints:
    """1 where a row has a token, 0 for padding."""
    lengths = np.array([len(row) for row in rows])
    return (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64)
