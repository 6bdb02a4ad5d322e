"""The handbook, the recipe's sources and the published checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from guide_recipe.reference_encoder import ReferenceEncoder
from guide_recipe.sources import GUIDE, Sources, read_sources
from tests.conftest import BUILD_CACHE

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


@pytest.fixture(scope="session")
def encoder(minilm: Path) -> ReferenceEncoder:
    return ReferenceEncoder(minilm)
