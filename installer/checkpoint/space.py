"""How much disk a build needs, before it begins.

Owns the estimate. The graph is built once without weights, by the code that builds it with them,
so the weights are counted and not guessed; that also finds a tensor that is missing, has another
shape or fits no file before the first is read. Refuses a disk without the room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from installer.checkpoint.journal import Record
from installer.checkpoint.weights import WeightFiles
from installer.packager_disk import expect_room

ALLOWANCE = 64_000_000
"""Bytes for graphs, tokenizer, texts, and what file systems add to every file."""


def counted(write: Callable[[WeightFiles], None], limit: int) -> int:
    """Bytes of the weights that `write` stores, without storing them. Raises CheckpointError."""
    files = _Counted(limit)
    write(files)
    return files.total


def check_space(directory: Path, weights: int) -> None:
    """Raise CapacityError unless `directory`, or where it will be, has room for `weights` bytes.

    What an unfinished build left in it counts as room.
    """
    there = sum(path.stat().st_size for path in directory.rglob("weights-*.bin"))
    needed = max(weights - there, 0) + ALLOWANCE
    expect_room(directory, needed, "the bundle still needs")


class _Counted(WeightFiles):
    """Weight files that are only added up."""

    def __init__(self, limit: int) -> None:
        super().__init__(Path(), limit=limit)
        self.total = 0

    def _append(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        pieces: Iterable[npt.NDArray[Any]],
    ) -> None:
        size = self._size(name, dtype, shape)
        self.total += size
        self._remember(Record(name, int(dtype), shape, "", 0, size, "", ()))
