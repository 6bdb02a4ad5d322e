"""8-bit floats with a scale for each square of a matrix, as DeepSeek-V3 and Qwen3-FP8 publish, or
for all of it, as Ministral 3 and Devstral 2 do.

weight [outer, inner] F8_E4M3, weight_scale_inv [outer / high, inner / wide] or []: a number is its
8-bit float times the scale of its square. DeepSeek-V4 calls it scale, has powers of two for scales
(F8_E8M0), and 4-bit floats for its experts (mxfp4.py). Matrices of all experts may be one tensor,
{name} [experts, outer, inner] with {name}_scale_inv [experts, ...], as Mistral Small 4 has them; a
matrix is asked for as {name}.{expert}. DeepSeek-V3 Technical Report (2024), 3.3. How activations
were rounded on the publisher's hardware (`activation_scheme`, and where it is static a scale for
each layer, activation_scale []) is not the model's meaning: the grades have rounding of their own,
and the one of 8-bit floats keeps 16 bits of activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from appliance.errors import CheckpointError
from installer.checkpoint.packed.mxfp4 import SingleMatrix, powers
from installer.checkpoint.packed.packing import Indices, Kept, Packed, Stored
from installer.checkpoint.quantize import Float32, FloatRows, UInt8
from installer.checkpoint.settings import Settings

E4M3, _E8M0, _TWO_EACH = "F8_E4M3", "F8_E8M0", "I8"
_SUFFIX = ".weight"
VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
"""What each byte means; two of them are not numbers."""
WHOLE = 1 << 62
"""Wider than any matrix."""
_NO_NUMBER = np.uint8(0x7F)


def read(settings: Settings) -> Squares:
    """Read quantization_config. Raises CheckpointError."""
    settings.expect("fmt", "e4m3", "float8_e4m3fn")
    settings.expect("scale_fmt", "ue8m0", "float")
    # Which matrices stayed plain shows in the tensors themselves.
    settings.ignore("modules_to_not_convert", "ignored_layers", "dequantize")
    settings.expect("expert_dtype", "fp4", "fp8")  # which it is shows there, too
    sides = settings.ids("weight_block_size")
    if not sides and settings.text("activation_scheme", "dynamic") == "static":
        return Squares(WHOLE, WHOLE)
    settings.expect("activation_scheme", "dynamic")
    if len(sides) != 2 or 0 in sides:
        raise CheckpointError(
            f"config.json: quantization_config: weight_block_size {list(sides)} is not supported",
            hint="8-bit floats are read with a scale for each square of a matrix",
        )
    return Squares(*sides)


@dataclass(frozen=True, slots=True)
class Squares:
    """The method: `high` rows by `wide` columns share a scale."""

    high: int
    wide: int

    @property
    def label(self) -> str:
        if self.high == WHOLE:
            return "8-bit floats with a scale for each matrix"
        return f"8-bit floats in squares of {self.high} x {self.wide}"

    @property
    def bits(self) -> None:
        return None

    def matrix(self, stored: Stored, weight: str) -> Packed | None:
        """The matrix `weight`, if it has scales."""
        name, _, expert = weight.rpartition(".")
        if expert.isdecimal() and stored.holds(f"{name}_scale_inv"):
            return ExpertBytes(stored, name, int(expert), self.high, self.wide)
        stem = weight.removesuffix(_SUFFIX)
        scales = f"{stem}.scale" if stored.holds(f"{stem}.scale") else f"{weight}_scale_inv"
        if not weight.endswith(_SUFFIX) or not stored.holds(scales):
            return None
        if stored.stored_type(weight) == _TWO_EACH:
            return SingleMatrix(stored, weight, scales)
        beside = f"{stem}.activation_scale"
        unused = [beside] if stored.holds(beside) else []
        return ScaledBytes(stored, weight, scales, self.high, self.wide, unused)


class ScaledBytes:
    """A matrix of 8-bit floats whose scales [outer / high, inner / wide] are a tensor too.

    Their dimensions of one element may be left out, and there may be more of them. `unused` are
    tensors that belong to it and say nothing of what it means.
    """

    def __init__(
        self,
        stored: Stored,
        weight: str,
        scales: str,
        high: int,
        wide: int,
        unused: Sequence[str] = (),
    ) -> None:
        self.shape = outer, inner = self._expect_matrix(stored, weight)
        wanted, found = (-(-outer // high), -(-inner // wide)), stored.stored_shape(scales)
        if not self._fits(found, wanted):
            raise CheckpointError(
                f"{scales} has the shape {list(found)}, "
                f"squares of {high} x {wide} mean {list(wanted)}",
                hint="the checkpoint's config.json belongs to another model",
            )
        self._stored, self._weight, self._high, self._wide = stored, weight, high, wide
        self._scale_name, self._unused = scales, unused
        self._scales: Float32 | None = None
        self._whole: UInt8 | None = None

    def rows(self, first: int, last: int) -> Float32:
        """What rows first..last stand for, [last - first, inner]."""
        values = self._values(self._bytes(first, last))
        return self._scaled(values, range(first, last), range(self.shape[1]))

    def columns(self, first: int, last: int) -> Float32:
        """What columns first..last stand for, [outer, last - first]; keeps the bytes for more."""
        if self._whole is None:
            self._whole = self._bytes(0, self.shape[0])
        values = self._values(self._whole[:, first:last])
        return self._scaled(values, range(self.shape[0]), range(first, last))

    def kept(self, bits: int) -> Kept | None:
        """None: they are no integers."""
        return None

    @property
    def shared(self) -> int:
        """Neighbours in a row that have one scale."""
        return self.shape[1] if self._wide >= self.shape[1] else self._wide

    def float_rows(self, first: int, last: int, run: int) -> FloatRows:
        """Rows first..last as they are stored, with a scale for each `run`."""
        stored = self._bytes(first, last)
        self._expect_numbers(stored)
        starts = np.arange(0, self.shape[1], run)
        scales = self._own(np.arange(first, last))[:, starts // self._wide]
        return FloatRows(stored, np.ascontiguousarray(scales))

    def _values(self, packed: UInt8) -> Float32:
        self._expect_numbers(packed)
        values: Float32 = VALUES[packed]
        return values

    def _expect_numbers(self, packed: UInt8) -> None:
        """Raise CheckpointError for a byte that stands for none, whatever its sign is."""
        if ((packed & _NO_NUMBER) == _NO_NUMBER).any():
            raise CheckpointError(f"{self._weight} has values that are not finite")

    def _scaled(self, values: Float32, rows: range, columns: range) -> Float32:
        values *= self._own(np.array(rows))[:, np.array(columns) // self._wide]
        return values

    def _own(self, rows: Indices) -> Float32:
        """The scales of these rows, [rows, squares in a row]."""
        if self._scales is None:
            for name in self._unused:
                self._stored.stored_floats(name)
            high = -(-self.shape[0] // self._high)
            self._scales = self._read_scales(high).reshape(high, -1)
        return self._scales[rows // self._high]

    def _expect_matrix(self, stored: Stored, weight: str) -> tuple[int, int]:
        shape, kind = stored.stored_shape(weight), stored.stored_type(weight)
        if len(shape) != 2 or kind != E4M3:
            raise CheckpointError(
                f"{weight} has scales, but is {kind} {list(shape)}, not a matrix of {E4M3}"
            )
        return shape[0], shape[1]

    def _fits(self, scales: tuple[int, ...], wanted: tuple[int, int]) -> bool:
        """Whether scales of this shape are one for each square."""
        return _several(scales) == _several(wanted)

    def _bytes(self, first: int, last: int) -> UInt8:
        """Rows first..last as they are stored."""
        return self._stored.stored_bytes(self._weight, first, last)

    def _read_scales(self, high: int) -> Float32:
        """As they are, or as powers of two."""
        if self._stored.stored_type(self._scale_name) != _E8M0:
            return self._stored.stored_floats(self._scale_name)
        return powers(self._scale_name, self._stored.stored_bytes(self._scale_name, 0, high))


class ExpertBytes(ScaledBytes):
    """One expert's matrix of a tensor `name` [experts, outer, inner], with scales alike."""

    def __init__(self, stored: Stored, name: str, expert: int, high: int, wide: int) -> None:
        self._expert = expert
        beside = f"{name}_activation_scale"
        unused = [beside] if stored.holds(beside) else []
        super().__init__(stored, name, f"{name}_scale_inv", high, wide, unused)

    def _expect_matrix(self, stored: Stored, weight: str) -> tuple[int, int]:
        shape, kind = stored.stored_shape(weight), stored.stored_type(weight)
        if len(shape) != 3 or kind != E4M3 or self._expert >= shape[0]:
            raise CheckpointError(
                f"{weight} has scales, but is {kind} {list(shape)}, not {self._expert + 1} or more "
                f"matrices of {E4M3}"
            )
        self._count = shape[0]
        return shape[1], shape[2]

    def _fits(self, scales: tuple[int, ...], wanted: tuple[int, int]) -> bool:
        return scales[:1] == (self._count,) and super()._fits(scales[1:], wanted)

    def _bytes(self, first: int, last: int) -> UInt8:
        matrix = self._stored.stored_bytes(self._weight, self._expert, self._expert + 1)
        rows: UInt8 = matrix.reshape(self.shape)[first:last]
        return rows

    def _read_scales(self, high: int) -> Float32:
        scales: Float32 = self._stored.stored_floats(self._scale_name)[self._expert]
        return scales


def _several(shape: Sequence[int]) -> list[int]:
    """Without dimensions of one element."""
    return [size for size in shape if size != 1]
