"""One running node for each test that asks for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shim.node import Node, standing
from tests.shim.sdk import claude, client, lenient

__all__ = ["claude", "client", "lenient", "node", "within_one_day"]

DAY, MARGIN = 86_400, 120.0


@pytest.fixture(autouse=True)
def within_one_day() -> None:
    """Budgets and reports go by days of UTC, and months: none ends while a test runs."""
    left = DAY - time.time() % DAY
    if left < MARGIN:
        time.sleep(left)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A shim in front of a fake engine."""
    with standing(tmp_path) as made:
        yield made
