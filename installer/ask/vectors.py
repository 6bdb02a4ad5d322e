"""The handbook's vectors on disk, so that a question costs one embedding and not hundreds.

A cache and nothing more: it may be deleted, it may be unwritable, and it is checked each time.
It belongs to the texts (by digest) and to the model (by embedding one text of it anew, in the same
call as the question), so a new handbook or a new model makes new vectors.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from appliance.fsops import make_dirs, write_durable
from installer.ask.retrieval import Vectors

Embed = Callable[[Sequence[str]], Vectors]

_SAME = 0.9999
"""Similarity of two vectors that one model made of one text, whatever else was in the batch."""


def embed_with_question(
    texts: Sequence[str], question: str, embed: Embed, cache: Path
) -> tuple[Vectors, Vectors]:
    """The vectors of `texts`, from the `cache` directory if they are there, and `question`'s."""
    file = cache / f"{_digest(texts)}.npy"
    kept = _read(file, len(texts))
    if kept is not None:
        probe, asked = embed([texts[0], question])
        if probe.shape == kept[0].shape and float(probe @ kept[0]) >= _SAME:
            return kept, asked
    vectors = embed([*texts, question])
    _write(file, vectors[:-1])
    return vectors[:-1], vectors[-1]


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def _read(file: Path, rows: int) -> Vectors | None:
    try:
        vectors: Vectors = npy.read_array(io.BytesIO(file.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vectors if vectors.dtype == np.float32 and len(vectors) == rows else None


def _write(file: Path, vectors: Vectors) -> None:
    data = io.BytesIO()
    npy.write_array(data, vectors, allow_pickle=False)
    try:
        make_dirs(file.parent, mode=0o755)
        write_durable(file, data.getvalue(), mode=0o644)
        for other in file.parent.glob("*.npy"):
            if other != file:
                other.unlink()
    except OSError:
        return  # an ordinary user asks: the next question computes them again
