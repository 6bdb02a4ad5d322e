"""What was learnt of the handbook on disk, so that a question costs one embedding, not thousands.

A cache and nothing more: it may be deleted, it may be unwritable, and it is checked each time.
It belongs to the lessons (by digest) and to the model (by embedding one text of them anew, in the
same call as the question), so a new handbook or a new model is learnt anew.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from appliance.fsops import make_dirs, write_durable
from installer.ask.reader import Reader, Vectors
from installer.ask.retrieval import Lesson

Embed = Callable[[Sequence[str]], Vectors]
Learn = Callable[[Vectors], Reader]

_SAME = 0.9999
"""Similarity of two vectors that one model made of one text, whatever else was in the batch."""


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    reader: Reader
    probe: Vectors
    """The vector of the first lesson: [dimensions]."""


def reader_and_question(
    taught: Sequence[Lesson], question: str, embed: Embed, learn: Learn, cache: Path
) -> tuple[Reader, Vectors]:
    """The reader of `taught`, and the vector of `question`: [dimensions].

    The reader is the one in `cache` if lessons and model are the same, else what `learn` makes of
    the lessons' vectors.
    """
    file = cache / f"{_digest(taught)}.npz"
    kept = _read(file)
    if kept is not None:
        probe, asked = embed([taught[0].text, question])
        if probe.shape == kept.probe.shape and float(probe @ kept.probe) >= _SAME:
            return kept.reader, asked
    vectors = embed([*(lesson.text for lesson in taught), question])
    reader = learn(vectors[:-1])
    _write(file, _Kept(reader, vectors[0]))
    return reader, vectors[-1]


def _digest(taught: Sequence[Lesson]) -> str:
    text = "\0".join(f"{lesson.passage}\0{lesson.text}" for lesson in taught)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(file: Path) -> _Kept | None:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            weights, probe = arrays["weights"], arrays["probe"]
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        return None
    if weights.dtype != np.float32 or probe.dtype != np.float32:
        return None
    if weights.ndim != 2 or probe.shape != (len(weights) - 1,):
        return None
    return _Kept(Reader(weights), probe)


def _write(file: Path, kept: _Kept) -> None:
    data = io.BytesIO()
    np.savez(data, weights=kept.reader.weights, probe=kept.probe)
    try:
        make_dirs(file.parent, mode=0o755)
        write_durable(file, data.getvalue(), mode=0o644)
        for other in file.parent.glob("*.np[yz]"):
            if other != file:
                other.unlink()
    except OSError:
        return  # an ordinary user asks: the next question learns it again
