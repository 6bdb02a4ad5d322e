"""Integers with a scale and a zero point for each group of a row's columns.

Owns what such integers mean, number = (integer - zero) * scale, and their way into the blocks that
MatMulNBits reads, which loses nothing: the same integers, zero points and scales. Where groups
are not neighbours (activation order), the columns are sorted by their group, and the graph sorts
what it multiplies with alike. How integers lie in words is the methods' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.errors import CheckpointError
from installer.checkpoint.packed.packing import Indices, Kept
from installer.checkpoint.quantize import Blocks, Float32, UInt8, pack_bits, unpack_bits

WORD_BITS = 32
_WIDEST_BLOCK, _SMALLEST_BLOCK = 128, 16
_RUN_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Groups:
    """A matrix in memory, still packed.

    Attributes:
        integers: rows and columns -> their integers, uint8 [rows, columns].
        scales: float32 [outer, groups].
        zeros: uint8 [outer, groups].
    """

    integers: Callable[[slice, slice], UInt8]
    scales: Float32
    zeros: UInt8


class GroupedMatrix:
    """One matrix [outer, inner] whose groups have `size` columns each.

    `of` gives the group of each column, int64 [inner]; None where they are neighbours.
    """

    def __init__(
        self,
        weight: str,
        shape: tuple[int, int],
        bits: int,
        size: int,
        load: Callable[[], Groups],
        of: Callable[[], Indices] | None = None,
    ) -> None:
        self.shape = shape
        self._weight = weight
        self._bits = bits
        self._size = size
        self._load = load
        self._read_of = of

    def rows(self, first: int, last: int) -> Float32:
        """What rows first..last stand for, [last - first, inner]."""
        return self._values(slice(first, last), slice(0, self.shape[1]))

    def columns(self, first: int, last: int) -> Float32:
        """What columns first..last stand for, [outer, last - first]."""
        return self._values(slice(0, self.shape[0]), slice(first, last))

    def kept(self, bits: int) -> Kept | None:
        """The integers in blocks, if they have as many bits. Raises CheckpointError."""
        if bits != self._bits:
            return None
        block = min(_WIDEST_BLOCK, self._size & -self._size)
        if block < _SMALLEST_BLOCK or self.shape[1] % self._size:
            raise CheckpointError(
                f"{self._weight} has groups of {self._size} columns, {self.shape[1]} in all: "
                "the grade's blocks cannot hold them as they are",
                hint="choose another grade: --precision w8a8",
            )
        order = self._order()
        return Kept(bits, block, order, partial(self._runs, block, order))

    @cached_property
    def _groups(self) -> Groups:
        return self._load()

    @cached_property
    def _of(self) -> Indices:
        if self._read_of is None:
            return np.arange(self.shape[1], dtype=np.int64) // self._size
        of, count = self._read_of(), -(-self.shape[1] // self._size)
        if of.min() < 0 or of.max() >= count:
            raise CheckpointError(f"{self._weight}: its columns are of groups that there are not")
        return of

    def _values(self, rows: slice, columns: slice) -> Float32:
        groups, of = self._groups, self._of[columns]
        steps = groups.integers(rows, columns).astype(np.float32)
        steps -= groups.zeros[rows][:, of]
        steps *= groups.scales[rows][:, of]
        return steps

    def _order(self) -> Indices | None:
        """The columns in the order of their groups; None if they lie so."""
        of = self._of
        if (np.bincount(of, minlength=self.shape[1] // self._size) != self._size).any():
            raise CheckpointError(f"{self._weight}: its groups are not of equal size")
        if (of[1:] >= of[:-1]).all():
            return None
        return np.argsort(of, kind="stable").astype(np.int64)

    def _runs(self, block: int, order: Indices | None) -> Iterator[Blocks]:
        groups, (outer, inner) = self._groups, self.shape
        # A group wider than a block becomes several blocks of one scale.
        times = self._size // block
        step = max(1, _RUN_BYTES // inner)
        for first in range(0, outer, step):
            rows = slice(first, min(first + step, outer))
            integers = groups.integers(rows, slice(0, inner))
            if order is not None:
                integers = integers[:, order]
            yield Blocks(
                pack_bits(integers.reshape(len(integers), -1, block), self._bits),
                np.repeat(groups.scales[rows], times, axis=1),
                pack_bits(np.repeat(groups.zeros[rows], times, axis=1), self._bits),
            )


def unpack(words: npt.NDArray[Any], bits: int) -> UInt8:
    """int32 [n, m] -> the integers in it, lowest bits first, uint8 [n, m * 32 / bits]."""
    return unpack_bits(np.ascontiguousarray(words, dtype="<i4").view(np.uint8), bits)


def unpack_columns(words: npt.NDArray[Any], bits: int, rows: slice, columns: slice) -> UInt8:
    """Some rows and columns of a matrix that has neighbouring columns in one of int32 `words`.

    `words` are [outer, ceil(inner / n)], n columns in each.
    """
    per_word = WORD_BITS // bits
    first, last = columns.start // per_word, -(-columns.stop // per_word)
    start = columns.start - first * per_word
    found = unpack(words[rows, first:last], bits)
    return found[:, start : start + columns.stop - columns.start]
