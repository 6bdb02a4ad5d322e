"""One safetensors file, read a few rows at a time.

Owns the format's header: eight bytes of length, a JSON object of names with element type, shape and
offsets, then the numbers. Refuses, before anything is allocated for it, whatever does not describe
the file exactly: a header longer than the file or the format's limit, a name twice, offsets that
overlap, leave holes or leave the file, sizes that are not those of shape and type. The public
library reads a whole tensor for each of its slices (0.8.0, without mapping), which for a table of
a vocabulary is a hundred times too much; mapping would count against this process's memory.
Source: the section "Format" of the safetensors documentation.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from appliance.errors import CheckpointError, LayoutError
from appliance.fsops import open_regular

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
PLAIN_FILES = "a checkpoint is a directory of plain files: copy it with `cp -rL`"
"""For who names a hub's cache, where every file is a link."""
LFS_POINTER = "version https://git-lfs"
IS_POINTER = "is a pointer of Git LFS, not the file itself"
FETCH_POINTERS = "fetch the files: run `git lfs pull` in the checkpoint's clone, or download them"
"""For who cloned a repository without its large files."""
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_MAX_AXES = 8
_DTYPES: Mapping[str, npt.DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: `begin` and `end` are bytes from the file's beginning."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(_DTYPES[self.kind])


class SafetensorsFile:
    """An open file; the words are those of the public library's `safe_open`."""

    def __init__(
        self, path: Path, name: str, entries: Mapping[str, Entry] | None = None, prefix: str = ""
    ) -> None:
        """`name` is what errors call it; `entries` its header, if that was read before.

        `prefix`: what is put in front of its tensors' names. Raises CheckpointError.
        """
        self.name = name
        try:
            self._fd = open_regular(path, name=name)
        except LayoutError as error:
            raise CheckpointError(error.message, hint=PLAIN_FILES) from error
        try:
            if entries is None:
                header = self._read_header(os.fstat(self._fd).st_size)
                entries = {f"{prefix}{name}": entry for name, entry in header.items()}
            self.entries = entries
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def keys(self) -> Iterator[str]:
        """Names of the tensors, in the header's order."""
        return iter(self.entries)

    def get_slice(self, name: str) -> Slice:
        """The tensor `name`, not yet read."""
        return Slice(self, self.entries[name])

    def get_tensor(self, name: str) -> npt.NDArray[Any]:
        """The whole tensor `name`."""
        entry = self.entries[name]
        return self.read(entry, entry.begin, entry.end).reshape(entry.shape)

    def read(self, entry: Entry, begin: int, end: int) -> npt.NDArray[Any]:
        """The numbers between two places of the file. Raises CheckpointError."""
        values = np.empty((end - begin) // entry.dtype.itemsize, entry.dtype)
        target = values.view(np.uint8).data if values.size else memoryview(b"")
        while target:
            count = os.preadv(self._fd, [target], end - len(target))
            if count == 0:
                raise self._bad("it became shorter while it was read")
            target = target[count:]
        return values

    def _read_header(self, size: int) -> dict[str, Entry]:
        if size < _LENGTH_BYTES:
            raise self._bad(f"it has {size} bytes")
        if os.pread(self._fd, len(LFS_POINTER), 0) == LFS_POINTER.encode():
            raise CheckpointError(f"{self.name} {IS_POINTER}", hint=FETCH_POINTERS)
        length = int.from_bytes(os.pread(self._fd, _LENGTH_BYTES, 0), "little")
        start = _LENGTH_BYTES + length
        if length > MAX_HEADER_BYTES or start > size:
            raise self._bad(f"its header claims {length} bytes")
        try:
            header = json.loads(
                os.pread(self._fd, length, _LENGTH_BYTES), object_pairs_hook=self._object
            )
        except (ValueError, RecursionError) as error:
            raise self._bad(f"its header is not JSON: {error}") from error
        if not isinstance(header, dict):
            raise self._bad("its header is not a JSON object")
        header.pop(_METADATA, None)
        entries = {name: self._entry(name, value, start) for name, value in header.items()}
        self._check_places(entries, start, size)
        return entries

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise self._bad(f"its header has {twice!r} twice")
        return found

    def _entry(self, name: str, value: object, start: int) -> Entry:
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._bad(f"{name} has no dtype, shape and data_offsets")
        kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(kind, str) or kind not in _DTYPES:
            raise self._bad(f"{name} has the element type {kind!r}")
        if not _are_counts(shape) or len(shape) > _MAX_AXES:
            raise self._bad(f"{name} has the shape {str(shape)[:80]}")
        if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._bad(f"{name} has the data_offsets {str(offsets)[:80]}")
        entry = Entry(kind, tuple(shape), start + offsets[0], start + offsets[1])
        wanted = math.prod(shape) * entry.dtype.itemsize
        if entry.end - entry.begin != wanted:
            raise self._bad(f"{name} has {entry.end - entry.begin} bytes, its shape {wanted}")
        return entry

    def _check_places(self, entries: Mapping[str, Entry], start: int, size: int) -> None:
        """Tensors follow each other without overlap or hole, up to the file's end."""
        at = start
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != at:
                word = "overlaps another tensor" if entry.begin < at else "leaves a hole before it"
                raise self._bad(f"{name} {word}")
            at = entry.end
        if at != size:
            raise self._bad(f"it has {size} bytes, its header describes {at}")

    def _bad(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.name} is not a safetensors file: {reason}",
            hint="the file is damaged or hostile: download it again",
        )


class Slice:
    """A tensor of which parts are read; the first axis says how much of the file."""

    def __init__(self, file: SafetensorsFile, entry: Entry) -> None:
        self._file = file
        self._entry = entry

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """Its element type as the format names it."""
        return self._entry.kind

    def __getitem__(self, key: int | slice | tuple[Any, ...]) -> npt.NDArray[Any]:
        """As of an array, with steps of one along the first axis. Raises CheckpointError."""
        first, *rest = key if isinstance(key, tuple) else (key,)
        entry = self._entry
        width = (entry.end - entry.begin) // entry.shape[0] if entry.shape[0] else 0
        if isinstance(first, int):
            assert 0 <= first < entry.shape[0], first
            start, stop, shape = first, first + 1, entry.shape[1:]
        else:
            start, stop, step = first.indices(entry.shape[0])
            assert step == 1, first
            stop = max(start, stop)
            shape = (stop - start, *entry.shape[1:])
        begin = entry.begin + start * width
        values = self._file.read(entry, begin, begin + (stop - start) * width).reshape(shape)
        part: npt.NDArray[Any] = (
            values[tuple(rest)] if isinstance(first, int) else values[(slice(None), *rest)]
        )
        return part


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)
