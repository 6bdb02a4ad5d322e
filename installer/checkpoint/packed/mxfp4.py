"""MXFP4: 4-bit floats with a power of two for every 32 of a row, as gpt-oss publishes its experts.

{name}_blocks U8 [experts, rows, groups, 16], two numbers a byte, the first in the lower half;
{name}_scales U8 [experts, rows, groups], the exponents plus 127; OCP Microscaling Formats (2023),
5.3. A matrix is asked for as {name}.{expert}; where publishers have a tensor for each, it is one of
another method's (fp8.py). Twice a 4-bit float is a whole number up to 12, so that 8-bit integers in
blocks of 32 hold exactly what they mean, and 4-bit integers do not
(docs/decisions/0176-mxfp4-in-eight-bits.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

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


class FourBitFloats:
    """A matrix [rows, groups * 32] of 4-bit floats, whose bytes lie where a kind of it knows."""

    def __init__(self, name: str, shape: tuple[int, int]) -> None:
        """`name` is what errors call its powers."""
        self.shape = shape
        self._name = name

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
        return self._read("numbers").reshape(self.shape[0], -1, _GROUP // 2)

    @cached_property
    def _powers(self) -> Float32:
        """What one step stands for, [rows, groups]."""
        whole = powers(self._name, self._read("exponents").reshape(self.shape[0], -1))
        return whole * np.float32(0.5)

    def _read(self, what: Literal["numbers", "exponents"]) -> UInt8:
        """All bytes of the matrix, in rows."""
        raise NotImplementedError


class ExpertMatrix(FourBitFloats):
    """One expert's matrix of a stack."""

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
        super().__init__(f"{name}_scales", (blocks[1], blocks[2] * _GROUP))
        self._stored = stored
        self._stack = name
        self._expert = expert

    def _read(self, what: Literal["numbers", "exponents"]) -> UInt8:
        end = "blocks" if what == "numbers" else "scales"
        return self._stored.stored_bytes(f"{self._stack}_{end}", self._expert, self._expert + 1)


class SingleMatrix(FourBitFloats):
    """A matrix of its own, I8 [rows, groups * 16], with powers F8_E8M0 [rows, groups], as
    DeepSeek-V4 publishes its experts."""

    def __init__(self, stored: Stored, weight: str, scales: str) -> None:
        shape, exponents = stored.stored_shape(weight), stored.stored_shape(scales)
        groups = 2 * shape[-1] // _GROUP
        if len(shape) != 2 or 2 * shape[1] % _GROUP or exponents != (shape[0], groups):
            raise CheckpointError(
                f"{weight} {list(shape)} and {scales} {list(exponents)} do not fit",
                hint="4-bit floats are read two in a byte, with a power of two for every 32",
            )
        super().__init__(scales, (shape[0], 2 * shape[1]))
        self._stored = stored
        self._names = {"numbers": weight, "exponents": scales}

    def _read(self, what: Literal["numbers", "exponents"]) -> UInt8:
        return self._stored.stored_bytes(self._names[what], 0, self.shape[0])


def powers(name: str, exponents: UInt8) -> Float32:
    """The powers of two that bytes stand for (E8M0). Raises CheckpointError."""
    if (exponents == _NO_NUMBER).any():
        raise CheckpointError(f"{name} has values that are not finite")
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - _BIAS)
