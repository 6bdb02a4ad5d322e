"""Sweeps whose cells are of few kinds: one of each kind in every run, all of them in the full one.

Owns how a cell is left to `scripts/test --full`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def rarely(cells: Iterable[Any]) -> list[Any]:
    """`cells` for `parametrize`, a tuple for several arguments: for the full run alone."""
    return [
        pytest.param(*(cell if isinstance(cell, tuple) else (cell,)), marks=pytest.mark.slow)
        for cell in cells
    ]


def sampled(cells: Iterable[Any], often: Collection[Any]) -> list[Any]:
    """`cells` for `parametrize`; those whose first argument is not one of `often` come `rarely`."""
    found: list[Any] = []
    for cell in cells:
        name = cell[0] if isinstance(cell, tuple) else cell
        found += [cell] if name in often else rarely([cell])
    return found
