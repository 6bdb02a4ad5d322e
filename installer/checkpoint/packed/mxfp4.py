"""MXFP4: 4-bit floats with a power of two for every 32 of a row, as gpt-oss publishes its experts.

{name}_blocks U8 [experts, rows, groups, 16], two numbers a byte, the first in the lower half;
{name}_scales U8 [experts, rows, groups], the exponents plus 127; OCP Microscaling Formats (2023),
5.3. A matrix is asked for as {name}.{expert}. Twice a 4-bit float is a whole number up to 12, so
that 8-bit integers in blocks of 32 hold exactly what they mean, and 4-bit integers do not
(docs/decisions/0176-mxfp4-in-eight-bits.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from appliance.errors import CheckpointError
from installer.checkpoint.packed.packing import Kept, Packed, Stored
from installer.checkpoint.quantize import Blocks, Float32, UInt8, unpack_bits
from installer.checkpoint.settings import Settings

_GROUP = 32
_BITS = 8
_HALVES = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)
_STEPS = np.concatenate([_HALVES, -_HALVES])
"""Twice what each 4-bit float means: a sign, two bits of exponent, one of mantissa."""
_ZERO = 128
_BIAS = 127
_NO_NUMBER = 255
_RUN_ROWS = 256


def read(settings: Settings) -> Mxfp4:
    """Read quantization_config. Raises CheckpointError."""
    # Which matrices stayed plain shows in the tensors themselves.
    settings.ignore("modules_to_not_convert")
    return Mxfp4()


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """The method."""

    @property
    def label(self) -> str:
        return f"mxfp4, 4-bit floats in groups of {_GROUP}"

    @property
    def bits(self) -> int:
        """Of the integers that hold what the floats mean."""
        return _BITS

    def matrix(self, stored: Stored, weight: str) -> Packed | None:
        """The matrix {name}.{expert}, if there are blocks of that name."""
        name, _, expert = weight.rpartition(".")
        if not expert.isdecimal() or not stored.holds(f"{name}_blocks"):
            return None
        return ExpertMatrix(stored, name, int(expert))


class ExpertMatrix:
    """One expert's matrix [rows, groups * 32]."""

    def __init__(self, stored: Stored, name: str, expert: int) -> None:
        blocks, scales = (stored.stored_shape(f"{name}_{end}") for end in ("blocks", "scales"))
        if len(blocks) != 4 or blocks[3] != _GROUP // 2 or blocks[:3] != scales:
            raise CheckpointError(
                f"{name}_blocks {list(blocks)} and {name}_scales {list(scales)} do not fit",
                hint="the checkpoint is damaged",
            )
        if expert >= blocks[0]:
            raise CheckpointError(
                f"{name}_blocks has no expert {expert}",
                hint="the checkpoint's config.json belongs to another model",
            )
        self.shape = (blocks[1], blocks[2] * _GROUP)
        self._stored = stored
        self._name = name
        self._expert = expert

    def rows(self, first: int, last: int) -> Float32:
        """What rows first..last stand for, [last - first, inner]."""
        groups = self._steps(first, last) * self._powers[first:last, :, None]
        return groups.reshape(last - first, self.shape[1])

    def columns(self, first: int, last: int) -> Float32:
        """What columns first..last stand for, [outer, last - first]."""
        return self.rows(0, self.shape[0])[:, first:last]

    def kept(self, bits: int) -> Kept | None:
        """The integers, if they have as many bits."""
        return Kept(_BITS, _GROUP, None, self._runs, centred=True) if bits == _BITS else None

    def _runs(self) -> Iterator[Blocks]:
        for first in range(0, self.shape[0], _RUN_ROWS):
            last = min(first + _RUN_ROWS, self.shape[0])
            integers = (self._steps(first, last) + _ZERO).astype(np.uint8)
            yield Blocks(integers, self._powers[first:last], None)

    def _steps(self, first: int, last: int) -> Float32:
        """Twice the 4-bit floats, [last - first, groups, 32]."""
        steps: Float32 = _STEPS[unpack_bits(self._packed[first:last], 4)]
        return steps

    @cached_property
    def _packed(self) -> UInt8:
        """[rows, groups, 16]."""
        return self._read("blocks").reshape(self.shape[0], -1, _GROUP // 2)

    @cached_property
    def _powers(self) -> Float32:
        """What one step stands for, [rows, groups]."""
        exponents = self._read("scales").reshape(self.shape[0], -1)
        if (exponents == _NO_NUMBER).any():
            raise CheckpointError(f"{self._name}_scales has values that are not finite")
        return np.ldexp(np.float32(1), exponents.astype(np.int32) - (_BIAS + 1))

    def _read(self, end: str) -> UInt8:
        return self._stored.stored_bytes(f"{self._name}_{end}", self._expert, self._expert + 1)
