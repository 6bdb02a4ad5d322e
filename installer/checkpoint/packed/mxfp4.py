"""MXFP4: 4-bit floats with a power of two for every 32 of a row, as gpt-oss publishes its experts.

{name}_blocks U8 [experts, rows, groups, 16], two numbers a byte, the first in the lower half;
{name}_scales U8 [experts, rows, groups], the exponents plus 127; OCP Microscaling Formats (2023),
5.3. A matrix is asked for as {name}.{expert}; where publishers have a tensor for each, it is one of
another method's (fp8.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from appliance.errors import CheckpointError
from installer.checkpoint.packed.four_bits import INTEGER_BITS, FourBitFloats
from installer.checkpoint.packed.packing import Packed, Stored
from installer.checkpoint.quantize import Float32, UInt8
from installer.checkpoint.settings import Settings

_GROUP = 32
_BIAS = 127
_NO_NUMBER = 255


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
        return INTEGER_BITS

    def matrix(self, stored: Stored, weight: str) -> Packed | None:
        """The matrix {name}.{expert}, if there are blocks of that name."""
        name, _, expert = weight.rpartition(".")
        if not expert.isdecimal() or not stored.holds(f"{name}_blocks"):
            return None
        return ExpertMatrix(stored, name, int(expert))


class ExpertMatrix(FourBitFloats):
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
        self._stored = stored
        self._name = name
        self._expert = expert
        shape = (blocks[1], blocks[2] * _GROUP)
        super().__init__(shape, _GROUP, self._packed_bytes, self._powers)

    def _packed_bytes(self) -> UInt8:
        return self._read("blocks").reshape(self.shape[0], -1)

    def _powers(self) -> Float32:
        """What one step stands for, [rows, groups]."""
        exponents = self._read("scales").reshape(self.shape[0], -1)
        return powers(f"{self._name}_scales", exponents) * np.float32(0.5)

    def _read(self, end: str) -> UInt8:
        return self._stored.stored_bytes(f"{self._name}_{end}", self._expert, self._expert + 1)


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
        self._stored = stored
        self._weight, self._scales = weight, scales
        super().__init__((shape[0], 2 * shape[1]), _GROUP, self._packed_bytes, self._powers)

    def _packed_bytes(self) -> UInt8:
        return self._read(self._weight)

    def _powers(self) -> Float32:
        return powers(self._scales, self._read(self._scales)) * np.float32(0.5)

    def _read(self, name: str) -> UInt8:
        """All bytes of the tensor, in rows."""
        rows = self.shape[0]
        return self._stored.stored_bytes(name, 0, rows).reshape(rows, -1)


def powers(name: str, exponents: UInt8) -> Float32:
    """The powers of two that bytes stand for (E8M0). Raises CheckpointError."""
    if (exponents == _NO_NUMBER).any():
        raise CheckpointError(f"{name} has values that are not finite")
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - _BIAS)
