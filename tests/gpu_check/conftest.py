"""A release whose only interpreter is the one that runs the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def release(tmp_path: Path) -> Path:
    directory = tmp_path / "release"
    directory.mkdir()
    (directory / "venv").symlink_to(sys.prefix)
    return directory
