"""The weight files of a bundle: weights-00001.bin and so on.

Owns where each tensor lies in them. Every file stays within the format's limit, and every
tensor is written in pieces as they come, so memory does not follow the model's size. Refuses a
single tensor that no file can hold: the graph builder splits tables before it comes to that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy.typing as npt
import onnx_ir as ir

from appliance.bundle.manifest import MAX_FILE_BYTES
from appliance.errors import CheckpointError

_ALIGNMENT = 64
"""Bytes. The runtime maps the files and reads weights with 512-bit loads."""


class WeightFiles:
    """Appends tensors to numbered files in `directory`."""

    def __init__(self, directory: Path, *, limit: int = MAX_FILE_BYTES) -> None:
        self.limit = limit
        self._directory = directory
        self._file: BinaryIO | None = None
        self._count = 0
        self._at = 0
        self._written: dict[str, ir.ExternalTensor] = {}

    def write(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        pieces: Iterable[npt.NDArray[Any]],
    ) -> ir.Value:
        """Append one tensor, given in row-major pieces; returns it as an initializer.

        Graphs that share weights write them once: a name that is there already is given again,
        and its pieces are not looked at.
        """
        if name not in self._written:
            self._written[name] = self._append(name, dtype, shape, pieces)
        tensor = self._written[name]
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape), name
        return ir.Value(
            name=name, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor
        )

    def _append(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        pieces: Iterable[npt.NDArray[Any]],
    ) -> ir.ExternalTensor:
        size = int(math.prod(shape) * dtype.itemsize)
        if size > self.limit:
            raise CheckpointError(
                f"{name} takes {size} bytes, more than the {self.limit} of one file",
                hint="choose a lower precision: --precision int4",
            )
        file = self._file_for(size)
        offset = self._at
        for piece in pieces:
            file.write(piece.tobytes())
            self._at += piece.nbytes
        assert self._at - offset == size, f"{name}: {self._at - offset} bytes for {size}"
        return ir.ExternalTensor(self._name, offset, size, dtype, shape=ir.Shape(shape), name=name)

    def flush(self) -> None:
        """Make everything written so far readable by others."""
        if self._file is not None:
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _name(self) -> str:
        return f"weights-{self._count:05}.bin"

    def _file_for(self, size: int) -> BinaryIO:
        padding = -self._at % _ALIGNMENT
        if self._file is None or self._at + padding + size > self.limit:
            self._close()
            self._count += 1
            self._at = 0
            self._file = (self._directory / self._name).open("xb")
            return self._file
        self._file.write(bytes(padding))
        self._at += padding
        return self._file


def alias(value: ir.Value, name: str, shape: tuple[int, ...]) -> ir.Value:
    """The bytes of the initializer `value` under another name and shape of the same size."""
    tensor = value.const_value
    assert isinstance(tensor, ir.ExternalTensor)
    other = ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(shape),
        name=name,
    )
    return ir.Value(
        name=name, shape=other.shape, type=ir.TensorType(tensor.dtype), const_value=other
    )
