"""How the weights of native operators lie in memory, and how they come to lie so.

Owns each layout for the native operators: sixteen rows side by side, a few neighbours of each
together, as the kernels read them (appliance/native/src/kernels.h). Pure: arrays and pieces of
files in, bytes out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from appliance.native import contract
from appliance.pb import onnx_graph_pb2 as pb

FLOAT, UINT8 = 1, 2
"""Element types of ONNX."""
_ROWS_AT_ONCE = 4096
_BYTES_AT_ONCE = 1 << 22
_TOGETHER = contract.LANES * contract.DEPTH


class Layout(Protocol):
    """What becomes of one tensor."""

    def shape(self, dims: Sequence[int]) -> tuple[int, ...]:
        """Of the result."""
        ...

    @property
    def data_type(self) -> int:
        """Of the result."""
        ...

    def pieces(self, source: BinaryIO, dims: Sequence[int]) -> Iterator[bytes]:
        """The result, from a file that is at the tensor's first byte."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """int8 [outer, inner] -> uint8 [ceil(outer / 16), inner / 4, 64]."""

    data_type: int = UINT8

    def shape(self, dims: Sequence[int]) -> tuple[int, ...]:
        outer, inner = dims
        return math.ceil(outer / contract.LANES), inner // contract.DEPTH, _TOGETHER

    def pieces(self, source: BinaryIO, dims: Sequence[int]) -> Iterator[bytes]:
        outer, inner = dims
        for rows in _runs(source, outer, inner, _ROWS_AT_ONCE):
            yield pack(rows.view(np.int8)).tobytes()


@dataclass(frozen=True, slots=True)
class Integers:
    """uint8 [outer, runs, bytes of a block] -> uint8 [outer / 16, runs, vectors of a block, 64]."""

    bits: int
    data_type: int = UINT8

    def shape(self, dims: Sequence[int]) -> tuple[int, ...]:
        outer, runs, size = dims
        return outer // contract.LANES, runs, size // contract.DEPTH, _TOGETHER

    def pieces(self, source: BinaryIO, dims: Sequence[int]) -> Iterator[bytes]:
        outer, runs, size = dims
        for rows in _runs(source, outer, runs * size):
            yield pack_integers(rows, self.bits).tobytes()


@dataclass(frozen=True, slots=True)
class Scales:
    """float32 [outer, runs] -> float32 [outer / 16, runs, 16]."""

    data_type: int = FLOAT

    def shape(self, dims: Sequence[int]) -> tuple[int, ...]:
        outer, runs = dims
        return outer // contract.LANES, runs, contract.LANES

    def pieces(self, source: BinaryIO, dims: Sequence[int]) -> Iterator[bytes]:
        outer, runs = dims
        for rows in _runs(source, outer, runs * 4):
            yield pack_beside(rows.view(np.float32)).tobytes()


@dataclass(frozen=True, slots=True)
class ZeroPoints:
    """uint8 [outer, ceil(runs * bits / 8)] -> uint8 [outer / 16, runs, 16], a byte each."""

    bits: int
    runs: int
    data_type: int = UINT8

    def shape(self, dims: Sequence[int]) -> tuple[int, ...]:
        return dims[0] // contract.LANES, self.runs, contract.LANES

    def pieces(self, source: BinaryIO, dims: Sequence[int]) -> Iterator[bytes]:
        outer, size = dims
        for rows in _runs(source, outer, size):
            yield pack_beside(_apart(rows, self.bits)[:, : self.runs]).tobytes()


def pack(rows: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """int8 [outer, inner] -> [ceil(outer / 16), inner / 4, 16 * 4], 128 added to each."""
    outer, inner = rows.shape
    raised = np.full((math.ceil(outer / contract.LANES) * contract.LANES, inner), 128, np.uint8)
    raised[:outer] = rows.view(np.uint8) ^ 0x80
    return _side_by_side(raised)


def pack_integers(rows: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Packed integers [outer, bytes of a row] -> [outer / 16, vectors, 16 * 4].

    Of 4 bits, a byte has one of the first four of eight neighbours, and the one four further on.
    """
    if bits == 8:
        return _side_by_side(rows)
    fours = _apart(rows, bits).reshape(len(rows), -1, 2, contract.DEPTH)
    halves: npt.NDArray[np.uint8] = fours[:, :, 0] | fours[:, :, 1] << np.uint8(4)
    return _side_by_side(halves.reshape(len(rows), -1))


def pack_beside(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[outer, runs] -> [outer / 16, runs, 16]."""
    split = rows.reshape(-1, contract.LANES, rows.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2))


def layouts(model: pb.Model) -> dict[str, Layout]:
    """What becomes of the weights of the native operators in `model`, by name."""
    found: dict[str, Layout] = {}
    dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain != contract.DOMAIN:
            continue
        inputs = [*node.input]
        for index in _MATRICES.get(node.op_type, ()):
            if index < len(inputs) and inputs[index]:
                found[inputs[index]] = Rows()
        for index in _IN_BLOCKS.get(node.op_type, ()):
            if index < len(inputs) and inputs[index]:
                bits = next(a.i for a in node.attribute if a.name == "bits")
                integers, scales, *rest = inputs[index : index + 3]
                found[integers], found[scales] = Integers(bits), Scales()
                if rest and rest[0]:
                    found[rest[0]] = ZeroPoints(bits, dims[scales][1])
    return found


_MATRICES: Mapping[str, tuple[int, ...]] = {
    "Linear": (1, 4, 7),
    "GatedLinear": (1, 3),
    "Lookup": (0,),
}
"""Which inputs of an operator are matrices of rows."""
_IN_BLOCKS: Mapping[str, tuple[int, ...]] = {
    "BlockLinear": (1, 5, 9),
    "BlockGatedLinear": (1, 4),
    "BlockLookup": (1,),
}
"""Which are integers in blocks, before their scales and zero points."""


def _side_by_side(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[outer, size] -> [outer / 16, size / 4, 16 * 4]."""
    vectors = rows.shape[1] // contract.DEPTH
    split = rows.reshape(-1, contract.LANES, vectors, contract.DEPTH)
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(-1, vectors, _TOGETHER)


def _apart(rows: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Integers a byte each, [outer, any]; two were in a byte, the lower half first."""
    if bits == 8:
        return rows
    return np.stack([rows & 15, rows >> 4], axis=-1).reshape(len(rows), -1)


def _runs(
    source: BinaryIO, count: int, size: int, most: int | None = None
) -> Iterator[npt.NDArray[np.uint8]]:
    """`count` rows of `size` bytes, whole panels at a time."""
    most = most or max(1, _BYTES_AT_ONCE // size // contract.LANES) * contract.LANES
    for first in range(0, count, most):
        rows = min(most, count - first)
        yield np.frombuffer(source.read(rows * size), np.uint8).reshape(rows, size)
