"""4-bit floats (E2M1) with a scale for each group of a row's columns.

Owns what they mean, and the integers that hold exactly that: twice a 4-bit float is a whole number
up to 12, which 8-bit integers in blocks hold, and 4-bit integers do not
(docs/decisions/0176-mxfp4-in-eight-bits.md). OCP Microscaling Formats (2023), 5.3. How scales are
stored is the methods' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from installer.checkpoint.packed.packing import Kept
from installer.checkpoint.quantize import Blocks, Float32, UInt8, unpack_bits

INTEGER_BITS = 8
"""Of the integers that hold what the floats mean."""
_HALVES = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)
_STEPS = np.concatenate([_HALVES, -_HALVES])
"""Twice what each 4-bit float means: a sign, two bits of exponent, one of mantissa."""
_ZERO = 128
_RUN_ROWS = 256


class FourBitFloats:
    """One matrix [outer, inner].

    Args:
        group: neighbours in a row that share a scale; a multiple of 16 that divides `inner`.
        read_packed: gives uint8 [outer, inner / 2], two numbers a byte, the first in its lower
            half.
        read_steps: gives what 1 of twice a number stands for, [outer, inner / group].
    """

    def __init__(
        self,
        shape: tuple[int, int],
        group: int,
        read_packed: Callable[[], UInt8],
        read_steps: Callable[[], Float32],
    ) -> None:
        self.shape = shape
        self._group = group
        self._read_packed, self._read_steps = read_packed, read_steps

    def rows(self, first: int, last: int) -> Float32:
        """What rows first..last stand for, [last - first, inner]."""
        groups = range(self.shape[1] // self._group)
        return self._meant(range(first, last), groups)

    def columns(self, first: int, last: int) -> Float32:
        """What columns first..last stand for, [outer, last - first]."""
        groups = range(first // self._group, -(-last // self._group))
        begin = first - groups.start * self._group
        return self._meant(range(self.shape[0]), groups)[:, begin : begin + last - first]

    def kept(self, bits: int) -> Kept | None:
        """The integers, if they have as many bits."""
        if bits != INTEGER_BITS:
            return None
        return Kept(INTEGER_BITS, self._group, None, self._runs, centred=True)

    def _meant(self, rows: range, groups: range) -> Float32:
        steps = self._twice(rows, groups)
        steps *= self._steps[rows.start : rows.stop, groups.start : groups.stop, None]
        return steps.reshape(len(rows), -1)

    def _runs(self) -> Iterator[Blocks]:
        outer, inner = self.shape
        for first in range(0, outer, _RUN_ROWS):
            rows = range(first, min(first + _RUN_ROWS, outer))
            twice = self._twice(rows, range(inner // self._group))
            yield Blocks((twice + _ZERO).astype(np.uint8), self._steps[first : rows.stop], None)

    def _twice(self, rows: range, groups: range) -> Float32:
        """Twice the 4-bit floats, [rows, groups, group]."""
        own = slice(groups.start * self._group // 2, groups.stop * self._group // 2)
        twice: Float32 = _STEPS[unpack_bits(self._packed[rows.start : rows.stop, own], 4)]
        return twice.reshape(len(rows), len(groups), self._group)

    @cached_property
    def _packed(self) -> UInt8:
        return self._read_packed()

    @cached_property
    def _steps(self) -> Float32:
        return self._read_steps()
