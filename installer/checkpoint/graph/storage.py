"""What of a checkpoint the graphs of one bundle read: stored as the scheme says, once for all.

Owns the forms in which a matrix is stored, and their names: plain floats, blocks or rows of
integers, 8-bit floats. What was stored by one graph another finds. How graphs compute with it:
builder.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from appliance.errors import CheckpointError
from installer.checkpoint.ahead import ahead
from installer.checkpoint.quantize import (
    LARGEST_BYTE_FLOAT,
    Blocks,
    Float32,
    FloatRows,
    Scheme,
    UInt8,
    block_size,
    float_run,
    quantize,
    quantize_floats,
    quantize_rows,
)
from installer.checkpoint.tensors import Tensors
from installer.checkpoint.weights import WeightFiles

_NOT_FINITE = np.uint16(0x7C00)
"""The exponent of a 16-bit float that is none."""


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A stored matrix [outer, inner] in blocks along `inner` (installer/checkpoint/quantize.py)."""

    packed: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    outer: int
    inner: int
    bits: int
    block: int


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """A stored matrix [outer, inner] of 8-bit integers, `scales` [outer, 1]."""

    integers: ir.Value
    scales: ir.Value
    outer: int
    inner: int


@dataclass(frozen=True, slots=True)
class FloatMatrix:
    """A stored matrix [outer, inner] of 8-bit floats, `scales` [outer, inner / run]."""

    values: ir.Value
    scales: ir.Value
    outer: int
    inner: int
    run: int


Matrix = QuantizedMatrix | IntegerMatrix


class Storage:
    """Stores what it is asked for. The values that it hands out are a graph's initializers."""

    def __init__(self, tensors: Tensors, files: WeightFiles, scheme: Scheme) -> None:
        self.tensors = tensors
        self.files = files
        self.scheme = scheme
        self._given: dict[str, Float32] = {}

    def give(self, name: str, values: Float32) -> None:
        """Say what the vector `name` is, which follows from what the checkpoint has."""
        self._given[name] = values

    def floats(self, name: str, shape: tuple[int, ...], pieces: Iterable[Float32]) -> ir.Value:
        """A float32 parameter, given in row-major pieces."""
        return self.files.write(name, ir.DataType.FLOAT, shape, pieces)

    def stored(self, name: str, shape: tuple[int, ...], pieces: Iterable[Float32]) -> ir.Value:
        """Weights as floats of the scheme's width, given in row-major pieces."""
        if self.scheme.float_bits != 16:
            return self.floats(name, shape, pieces)
        tensor = name.removesuffix(".transposed")
        narrowed = ahead(partial(_narrowed, tensor), pieces)
        return self.files.write(name, ir.DataType.FLOAT16, shape, narrowed)

    def _vector(self, name: str, width: int, offset: float = 0.0) -> ir.Value:
        """The same in 32 bits."""
        values = self._given.get(name)
        values = self.tensors.vector(name, width) if values is None else values
        assert values.shape == (width,), name
        return self.floats(name, (width,), [values + np.float32(offset)])

    def _weight(self, name: str, inner: int, outer: int) -> str:
        weight = f"{name}.weight"
        self.tensors.expect(weight, (outer, inner))
        return weight

    def integers(self, name: str, shape: tuple[int, int], rows: Iterable[Float32]) -> IntegerMatrix:
        """Round and store the matrix of this shape, given in runs of rows, a scale a row."""
        outer, inner = shape
        scales: list[Float32] = []

        def rounded() -> Iterator[npt.NDArray[np.int8]]:
            for piece in rows:
                integers, each = quantize_rows(piece)
                scales.append(each)
                yield integers

        stored = self.files.write(f"{name}.integers", ir.DataType.INT8, shape, rounded())
        return IntegerMatrix(
            stored, self.floats(f"{name}.scales", (outer, 1), scales), outer, inner
        )

    def byte_floats(self, name: str, inner: int, outer: int) -> FloatMatrix | None:
        """Store the checkpoint's `name`.weight [outer, inner] in 8-bit floats: those that it has,
        else rounded. None where the publisher of others left it plain, or rows are no whole runs.

        Raises CheckpointError if 16-bit floats cannot hold what they stand for.
        """
        weight = self._weight(name, inner, outer)
        shared = self.tensors.shared_scale(weight)
        run = float_run(inner) if shared is None else float_run(inner, shared)
        if run is None or self.tensors.keeps_plain(weight):
            return None
        if shared is None:
            rounded = partial(quantize_floats, run=run)
            rows: Iterable[FloatRows] = ahead(rounded, self.tensors.rows(weight))
        else:
            rows = self.tensors.float_rows(weight, run)
        scales_of: list[Float32] = []

        def values() -> Iterator[UInt8]:
            for piece in rows:
                _narrowed(weight, piece.scales * np.float32(LARGEST_BYTE_FLOAT))
                scales_of.append(piece.scales)
                yield piece.values

        stored = self.files.write(
            f"{name}.values", ir.DataType.FLOAT8E4M3FN, (outer, inner), values()
        )
        scales = self.floats(f"{name}.scales", (outer, inner // run), scales_of)
        return FloatMatrix(stored, scales, outer, inner, run)

    def quantized(
        self, name: str, shape: tuple[int, int], rows: Iterable[Float32], bits: int, block: int
    ) -> QuantizedMatrix:
        """Quantize and store the matrix of this shape, given in runs of rows."""
        return self.in_blocks(
            name, shape, (quantize(piece, bits, block) for piece in rows), bits, block
        )

    def matrix_in_blocks(
        self, name: str, inner: int, outer: int
    ) -> tuple[QuantizedMatrix, ir.Value | None]:
        """Store the checkpoint's `name`.weight [outer, inner]: the integers that it has if they
        have the scheme's bits, else rounded; the matrix, and the order of what it is multiplied
        with if that is another."""
        weight, bits = self._weight(name, inner, outer), self.scheme.layer_bits
        kept = self.tensors.kept(weight, bits)
        if kept is None:
            rows = self.tensors.rows(weight)
            return self.quantized(name, (outer, inner), rows, bits, block_size(inner)), None
        order = None
        if kept.order is not None:
            order = self.files.write(f"{name}.order", ir.DataType.INT64, (inner,), [kept.order])
        runs = kept.runs()
        return self.in_blocks(
            name, (outer, inner), runs, kept.bits, kept.block, centred=kept.centred
        ), order

    def in_blocks(
        self,
        name: str,
        shape: tuple[int, int],
        runs_of: Iterable[Blocks],
        bits: int,
        block: int,
        *,
        centred: bool = False,
    ) -> QuantizedMatrix:
        """Store the matrix of this shape, given in runs of rows; one that is `centred` has no
        zero points."""
        outer, inner = shape
        runs = -(-inner // block)
        scales_of: list[Float32] = []
        zeros_of: list[npt.NDArray[np.uint8]] = []

        def packed() -> Iterator[npt.NDArray[np.uint8]]:
            for blocks in runs_of:
                # A view of the integers, however short, would keep them all in memory.
                scales_of.append(blocks.scales)
                if blocks.zero_points is not None:
                    zeros_of.append(blocks.zero_points)
                yield blocks.packed

        integers = self.files.write(
            f"{name}.packed", ir.DataType.UINT8, (outer, runs, block * bits // 8), packed()
        )
        scales = self.floats(f"{name}.scales", (outer, runs), scales_of)
        if centred:
            return QuantizedMatrix(integers, scales, None, outer, inner, bits, block)
        zeros = self.files.write(
            f"{name}.zeros", ir.DataType.UINT8, (outer, -(-runs * bits // 8)), zeros_of
        )
        return QuantizedMatrix(integers, scales, zeros, outer, inner, bits, block)


def _narrowed(name: str, piece: Float32) -> npt.NDArray[np.float16]:
    """`piece` in 16 bits. Raises CheckpointError if they cannot hold it."""
    with np.errstate(over="ignore"):
        narrow = piece.astype(np.float16)
    # On the bits: a comparison of 16-bit floats takes half as long as making them.
    if ((narrow.view(np.uint16) & _NOT_FINITE) == _NOT_FINITE).any():
        raise CheckpointError(
            f"{name} has values that 16-bit floats cannot hold", hint="choose --precision fp32"
        )
    return narrow
