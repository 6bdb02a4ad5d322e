"""The handbook, the recipe's sources and the published checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from guide_recipe.reference_encoder import Embed, ReferenceEncoder
from guide_recipe.sources import GUIDE, Sources, read_sources
from installer.ask.reader import Vectors
from installer.ask.retrieval import lessons
from tests.conftest import BUILD_CACHE, BuildOnce

CHECKPOINT = GUIDE / "checkpoint"


@pytest.fixture(scope="session")
def sources() -> Sources:
    return read_sources()


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The embeddings checkpoint, which scripts/fetch-minilm put there."""
    directory = BUILD_CACHE / "minilm"
    if not (directory / "model.safetensors").exists():
        pytest.fail("run scripts/fetch-minilm first")
    return directory


class Remembering:
    """An encoder that embeds no text twice; `known` it has from others."""

    def __init__(self, embed: Embed, known: dict[str, Vectors]) -> None:
        self._embed = embed
        self._known = known

    def __call__(self, texts: Sequence[str]) -> Vectors:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= dict(zip(new, self._embed(new), strict=True))
        return np.stack([self._known[text] for text in texts])


@pytest.fixture(scope="session")
def encoder(minilm: Path, sources: Sources, build_once: BuildOnce) -> Embed:
    """The published encoder; what the handbook teaches is embedded once per test run."""
    embed = ReferenceEncoder(minilm)
    taught = [lesson.text for lesson in lessons(sources.passages, sources.asked)]

    def build(directory: Path) -> None:
        np.save(directory / "vectors.npy", embed(taught))

    vectors = np.load(build_once("taught", build) / "vectors.npy")
    return Remembering(embed, dict(zip(taught, vectors, strict=True)))
