"""The weight files of a bundle: weights-00001.bin and so on.

Owns where each tensor lies in them, and the files' digests. Every file stays within the format's
limit, and every tensor is hashed and written in pieces as they come, so memory does not follow the
model's size. With a journal, a build that was stopped goes on after what it proves. Refuses a
single tensor that no file can hold: the graph builder splits tables before it comes to that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from appliance.bundle.files import MAX_FILE_BYTES
from appliance.errors import CheckpointError
from installer.checkpoint.journal import Journal, Record, digest_to

_ALIGNMENT = 64
"""Bytes. The runtime maps the files and reads weights with 512-bit loads."""


class Sources(Protocol):
    """Whose tensors the weights are made from (tensors.py)."""

    def taken(self) -> tuple[str, ...]:
        """Names used for the first time since this was last asked."""
        ...

    def account(self, names: Iterable[str]) -> None:
        """Take these as used: what was made of them is stored already."""
        ...


class WeightFiles:
    """Appends tensors to numbered files in `directory`.

    Attributes:
        entries: name of each file -> its size in bytes and its SHA-256, hex.
        sealed: nothing may be appended any more.
    """

    def __init__(
        self,
        directory: Path,
        *,
        limit: int = MAX_FILE_BYTES,
        journal: Journal | None = None,
        sources: Sources | None = None,
    ) -> None:
        """What is written is also written down in `journal`, with what `sources` gave for it."""
        self.limit = limit
        self.entries: dict[str, tuple[int, str]] = {}
        self.sealed = False
        self._directory = directory
        self._journal = journal
        self._sources = sources
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1)
        """Hashes while the file is written: neither waits for the other."""
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
        and its pieces are not looked at. A build that goes on finds what an earlier one wrote in
        the same way. What the pieces of one tensor leave behind for another, such as scales, may
        therefore be used only by tensors written directly after it that read nothing of the
        checkpoint.
        """
        if name not in self._written:
            assert not self.sealed, f"{name} is not among the bundle's weights"
            self._append(name, dtype, shape, pieces)
        tensor = self._written[name]
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape), name
        return ir.Value(
            name=name, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor
        )

    def restore(self, records: Sequence[Record]) -> None:
        """Go on after the tensors that a journal proved."""
        for record in records:
            self._remember(record)
            if self._sources is not None:
                self._sources.account(record.sources)
        if not records:
            return
        last = self._directory / records[-1].file
        self._count, self._at = len(self.entries), records[-1].end
        with last.open("rb") as file:
            digest_to(file, self._at, self._digest)
        self._file = last.open("ab")

    def _append(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        pieces: Iterable[npt.NDArray[Any]],
    ) -> None:
        size = self._size(name, dtype, shape)
        file = self._file_for(size)
        offset = self._at
        for piece in pieces:
            self._put(file, np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        assert self._at - offset == size, f"{name}: {self._at - offset} bytes for {size}"
        sources = self._sources.taken() if self._sources is not None else ()
        record = Record(
            *(name, int(dtype), shape, self._name),
            *(offset, size, self._digest.hexdigest(), sources),
        )
        self._remember(record)
        if self._journal is not None:
            file.flush()
            self._journal.append(record)

    def _size(self, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor. Raises CheckpointError if no file can hold it."""
        size = int(math.prod(shape) * dtype.itemsize)
        if size > self.limit:
            raise CheckpointError(
                f"{name} takes {size} bytes, more than the {self.limit} of one file",
                hint="choose a lower precision: --precision int4",
            )
        return size

    def _put(self, file: BinaryIO, data: bytes | memoryview) -> None:
        hashed = self._hasher.submit(self._digest.update, data)
        file.write(data)
        hashed.result()
        self._at += len(data)

    def _remember(self, record: Record) -> None:
        self._written[record.name] = ir.ExternalTensor(
            record.file,
            record.offset,
            record.size,
            ir.DataType(record.dtype),
            shape=ir.Shape(record.shape),
            name=record.name,
        )
        self.entries[record.file] = record.end, record.sha256

    def flush(self) -> None:
        """Make everything written so far readable by others."""
        if self._file is not None:
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._hasher.shutdown()

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
            self._digest = hashlib.sha256()
            self._file = (self._directory / self._name).open("xb")
            return self._file
        self._put(self._file, bytes(padding))
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
