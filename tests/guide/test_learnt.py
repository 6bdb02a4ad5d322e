"""The handbook is learnt once, and again when anything about it changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from installer.ask.learnt import reader_and_question
from installer.ask.passages import Passage
from installer.ask.reader import Reader, Vectors
from installer.ask.retrieval import Lesson, learn

PASSAGES = [Passage(name, "page.md", name, name, "", ()) for name in ("one", "two")]
TAUGHT = [Lesson("alpha", 0), Lesson("beta", 1), Lesson("gamma", 2)]


EMPTY_ARCHIVE = b"PK\x05\x06" + bytes(18)


class Model:
    """Embeds a text as a direction that depends on it and on `seed`; counts its calls."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.batches: list[int] = []

    def __call__(self, texts: Sequence[str]) -> Vectors:
        self.batches.append(len(texts))
        rows = [np.random.default_rng([self.seed, *text.encode()]).normal(size=8) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


def ask(model: Model, cache: Path, taught: Sequence[Lesson] = TAUGHT) -> None:
    def learn_it(vectors: Vectors) -> Reader:
        return learn(PASSAGES, taught, vectors)

    reader, question = reader_and_question(taught, "delta", model, learn_it, cache)
    fresh = Model(model.seed)
    expected = learn_it(fresh([lesson.text for lesson in taught]))
    assert np.array_equal(reader.weights, expected.weights)
    assert np.array_equal(question, fresh(["delta"])[0])


def test_the_second_question_embeds_itself_and_a_probe(tmp_path: Path) -> None:
    model = Model()
    ask(model, tmp_path / "ask")
    ask(model, tmp_path / "ask")
    assert model.batches == [4, 2]


def test_another_model_is_noticed(tmp_path: Path) -> None:
    ask(Model(1), tmp_path)
    ask(Model(2), tmp_path)
    ask(Model(2), tmp_path)


@pytest.mark.parametrize("other", [TAUGHT[:2], [*TAUGHT[:2], Lesson("gamma", 1)]])
def test_other_lessons_replace_the_file(tmp_path: Path, other: list[Lesson]) -> None:
    model = Model()
    ask(model, tmp_path)
    ask(model, tmp_path, other)
    assert model.batches == [4, len(other) + 1]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not an archive", b"\x93NUMPY", EMPTY_ARCHIVE])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    model = Model()
    ask(model, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    ask(model, tmp_path)
    ask(model, tmp_path)
    assert model.batches == [4, 4, 2]


def test_an_unwritable_place_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    model = Model()
    ask(model, tmp_path / "file")
    ask(model, tmp_path / "file")
    assert model.batches == [4, 4]
