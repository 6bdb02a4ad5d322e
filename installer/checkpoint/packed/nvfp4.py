"""NVFP4: 4-bit floats with an 8-bit one for every 16 of a row, and one number for the matrix.

A matrix U8 [outer, inner / 2], scales F8_E4M3 [outer, inner / 16], and a number of one element:
each 4-bit float is meant times its scale, which is meant times the number, or divided by it.
NVIDIA, Pretraining Large Language Models with NVFP4 (2025), 2. Which tensors these are the
publishers' tools say each in their own way: modelopt.py, compressed.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from appliance.errors import CheckpointError
from installer.checkpoint.packed.four_bits import FourBitFloats
from installer.checkpoint.packed.fp8 import E4M3, VALUES
from installer.checkpoint.packed.gptq import fits, two
from installer.checkpoint.packed.packing import Stored
from installer.checkpoint.quantize import Float32, UInt8

GROUP = 16
_PER_BYTE = 2
_PACKED = "U8"


@dataclass(frozen=True, slots=True)
class Names:
    """The tensors that one matrix is made of.

    Attributes:
        packed, scales: as the layout says.
        number: the one for the whole matrix.
        divides: whether it divides what it is for.
        unused: those that belong to it and say nothing of what it means.
    """

    packed: str
    scales: str
    number: str
    divides: bool
    unused: Sequence[str]


def read_matrix(stored: Stored, names: Names) -> FourBitFloats:
    """The matrix of these tensors. Raises CheckpointError if they do not fit."""
    outer, half = two(stored, names.packed)
    inner = _PER_BYTE * half
    for name, kind in ((names.packed, _PACKED), (names.scales, E4M3)):
        if stored.stored_type(name) != kind:
            raise CheckpointError(f"{name} is {stored.stored_type(name)}, not {kind}")
    if inner % GROUP:
        raise CheckpointError(f"{names.packed} has {inner} columns, not a multiple of {GROUP}")
    fits(stored, names.scales, (outer, inner // GROUP))

    def packed() -> UInt8:
        return stored.stored_bytes(names.packed, 0, outer).reshape(outer, half)

    def steps() -> Float32:
        for name in names.unused:
            stored.stored_floats(name)
        return _scales(stored, names, outer) * np.float32(0.5)

    return FourBitFloats((outer, inner), GROUP, packed, steps)


def _scales(stored: Stored, names: Names, outer: int) -> Float32:
    """What the 4-bit floats are meant times, [outer, groups]."""
    if math.prod(stored.stored_shape(names.number)) != 1:
        shape = list(stored.stored_shape(names.number))
        raise CheckpointError(f"{names.number} has the shape {shape}, not one element")
    number = stored.stored_floats(names.number).reshape(())
    scales: Float32 = VALUES[stored.stored_bytes(names.scales, 0, outer)].reshape(outer, -1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scales = scales / number if names.divides else scales * number
    if not np.isfinite(scales).all():
        raise CheckpointError(f"{names.scales} has values that are not finite")
    return scales
