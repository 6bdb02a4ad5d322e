"""What a method of quantization has to say of a matrix, and what it may read to say it.

Owns the three protocols between `Tensors` and the methods: a method finds matrices, a packed
matrix gives numbers or integers, and both read a checkpoint's tensors as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from installer.checkpoint.quantize import Blocks, Float32, FloatRows, UInt8

Indices = npt.NDArray[np.int64]


class Stored(Protocol):
    """A checkpoint's tensors as they lie in its files."""

    def holds(self, name: str) -> bool:
        """Whether a tensor of this name is stored."""
        ...

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Raises CheckpointError if there is none."""
        ...

    def stored_type(self, name: str) -> str:
        """The element type in the words of safetensors: BF16, I32, F8_E4M3, ..."""
        ...

    def stored(self, name: str, *types: str) -> npt.NDArray[Any]:
        """The whole tensor, which must have one of the element types."""
        ...

    def stored_bytes(self, name: str, first: int, last: int) -> UInt8:
        """Rows first..last of a matrix of one-byte elements."""
        ...

    def stored_floats(self, name: str) -> Float32:
        """The whole tensor of plain floats, which must be finite."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """The integers of a matrix [outer, inner], as the checkpoint has them.

    Attributes:
        bits: 4 or 8.
        block: neighbours in a row that share a scale, a power of 2 that divides `inner`.
        order: [inner], the matrix' column at each place of the integers; None if as they come.
        runs: gives the rows, some at a time.
        centred: whether no zero points are said, since all are half of the range.
    """

    bits: int
    block: int
    order: Indices | None
    runs: Callable[[], Iterator[Blocks]]
    centred: bool = False


def part_of(kept: Kept, first: int, rows: int) -> Kept:
    """So many rows of a matrix, from row `first` on."""

    def runs() -> Iterator[Blocks]:
        at = 0
        for blocks in kept.runs():
            wanted = slice(max(first - at, 0), max(first + rows - at, 0))
            zeros = blocks.zero_points
            yield Blocks(
                blocks.packed[wanted],
                blocks.scales[wanted],
                None if zeros is None else zeros[wanted],
            )
            at += len(blocks.packed)

    return replace(kept, runs=runs)


class Packed(Protocol):
    """One matrix [outer, inner]. No weight is read before one is asked for."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def rows(self, first: int, last: int) -> Float32:
        """What rows first..last stand for, [last - first, inner]."""
        ...

    def columns(self, first: int, last: int) -> Float32:
        """What columns first..last stand for, [outer, last - first]."""
        ...

    def kept(self, bits: int) -> Kept | None:
        """The integers, if they have as many bits."""
        ...


@runtime_checkable
class PackedFloats(Packed, Protocol):
    """One matrix [outer, inner] of 8-bit floats (E4M3)."""

    @property
    def shared(self) -> int:
        """Neighbours in a row that have one scale."""
        ...

    def float_rows(self, first: int, last: int, run: int) -> FloatRows:
        """Rows first..last as they are stored, with a scale for each `run`, which divides
        `shared` and `inner`."""
        ...


class Method(Protocol):
    """One method with the numbers that config.json says."""

    @property
    def label(self) -> str:
        """What is stored, for the packager: "gptq, 4 bits in groups of 128"."""
        ...

    @property
    def bits(self) -> int | None:
        """Bits of the integers that a grade may keep; None if 8-bit floats are stored."""
        ...

    def matrix(self, stored: Stored, weight: str) -> Packed | None:
        """The matrix `weight`; None if that one is not packed. Raises CheckpointError."""
        ...
