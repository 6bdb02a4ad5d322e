"""The weights of a checkpoint: safetensors files, read a piece at a time.

Owns names, shapes and element types, the shard index, and the account of which tensors were
used. A matrix that a method of quantization stores (`packed`) is read like any other. Refuses
pickled weights (loading them runs code), shards outside the directory, element types that are not
plain floats where no method says what they mean, and values that are not finite. Never holds more
than one tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.errors import CheckpointError
from installer.checkpoint.ahead import ahead
from installer.checkpoint.byte_rows import ByteRows
from installer.checkpoint.packed.packing import Kept, Method, Packed, PackedFloats, part_of
from installer.checkpoint.quantize import FloatRows, UInt8
from installer.checkpoint.safetensors_file import Entry, SafetensorsFile

Float32 = npt.NDArray[np.float32]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.msgpack", "*.h5")

_PIECE_BYTES = 4 * 1024 * 1024
"""Of float32; small enough that the temporaries of rounding stay in the processor's cache."""
_BLOCK = (512, 80)
"""Rows and columns; as many columns as 64 or 128 would share lines of the cache."""
_FLOATS = frozenset({"F32", "F16", "BF16"})
_BYTES = frozenset({"F8_E4M3", "F8_E8M0", "U8", "I8"})
NUMBERS = ("I64", "I32")
_SIZES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a matrix."""

    whole: str
    first: int
    rows: int


class Tensors:
    """All tensors of a checkpoint by name."""

    def __init__(
        self,
        directory: Path,
        index: Mapping[str, object] | None,
        packing: Method | None = None,
        beside: Mapping[str, str] | None = None,
    ) -> None:
        """`index` is the parsed shard index, or None for one file.

        `beside`: files in folders of their own, and what is put in front of their tensors' names.
        Raises CheckpointError.
        """
        self._directory = directory
        self._beside = dict(beside or {})
        self._packing = packing
        self._byte_rows: dict[str, ByteRows] = {}
        self._file = _indexed(index) if index is not None else None
        files = tuple(sorted(set(self._file.values()))) if self._file else (WEIGHTS,)
        self.files = (*files, *self._beside)
        self._shape: dict[str, tuple[int, ...]] = {}
        self._type: dict[str, str] = {}
        self._entries: dict[str, Mapping[str, Entry]] = {}
        where: dict[str, str] = {}
        for file in self.files:
            for name, shape, kind in self._headers(file):
                if where.setdefault(name, file) != file:
                    raise CheckpointError(f"{name} is both in {where[name]} and in {file}")
                self._shape[name], self._type[name] = shape, kind
        own = {name: file for name, file in where.items() if file not in self._beside}
        if self._file is not None and self._file != own:
            odd = sorted(dict(self._file.items() ^ own.items()))[0]
            raise CheckpointError(
                f"{INDEX} and the shards disagree on {odd}", hint="download the checkpoint again"
            )
        self._file = where
        self._used: set[str] = set()
        self._asked: set[str] = set()
        """Whose shape was asked for, as it is of all that are used."""
        self._numbers: set[str] = set()
        """Of these, that are whole numbers."""
        self._taken: list[str] = []
        self._parts: dict[str, _Part] = {}
        self.size = sum((directory / file).stat().st_size for file in self.files)
        self.advance: Callable[[int], None] = _ignore
        """Told the bytes of the checkpoint as they are read, by several threads."""
        self.translate: Callable[[str], str] = _same
        """What these files call that is asked for by other names; it leaves theirs alone."""
        self.prefix = ""
        """What names are asked for with, and these files leave out."""

    def __contains__(self, name: str) -> bool:
        return self.holds(name) or self._packed(name) is not None

    def names(self) -> Iterable[str]:
        """Of all tensors."""
        return self._shape.keys()

    def which(self, *names: str) -> str:
        """The first of these names that a tensor has; the first of all if none has."""
        return next((name for name in names if name in self), names[0])

    def file_of(self, name: str) -> str:
        """The file that the tensor `name` is in."""
        assert self._file is not None
        return self._file[name]

    def is_beside(self, name: str) -> bool:
        """Whether the tensor `name` is in a folder of its own."""
        return self.file_of(name) in self._beside

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor `name`. Raises CheckpointError if there is none."""
        if part := self._parts.get(name):
            return part.rows, *self.shape(part.whole)[1:]
        packed = self._packed(name)
        return self.stored_shape(name) if packed is None else packed.shape

    def kept(self, name: str, bits: int) -> Kept | None:
        """The integers of the matrix `name`, if it is stored in integers of as many bits."""
        packed = self._packed(name)
        kept = None if packed is None else packed.kept(bits)
        part = self._parts.get(name)
        return kept if kept is None or part is None else part_of(kept, part.first, part.rows)

    def shared_scale(self, name: str) -> int | None:
        """Neighbours in a row of the matrix `name` that have one scale, if it is stored in 8-bit
        floats."""
        packed = self._packed(name)
        return packed.shared if isinstance(packed, PackedFloats) else None

    def float_rows(self, name: str, run: int) -> Iterator[FloatRows]:
        """The matrix `name`, which is stored in 8-bit floats, as runs of whole rows of a few MB
        with a scale for each `run` of a row."""
        packed = self._packed(name)
        assert isinstance(packed, PackedFloats), name
        count, width = self._matrix(name)
        _, begin = self._whole(name)
        step = max(1, _PIECE_BYTES // width)
        for first in range(begin, begin + count, step):
            yield packed.float_rows(first, min(first + step, begin + count), run)

    def keeps_plain(self, name: str) -> bool:
        """Whether the matrix `name` is plain where a method stores others in 8-bit floats."""
        packing = self._packing
        return packing is not None and packing.bits is None and self._packed(name) is None

    def is_packed(self, name: str) -> bool:
        """Whether a method of quantization stores the matrix `name`."""
        return self._packed(name) is not None

    def holds(self, name: str) -> bool:
        """Whether a tensor of this name is stored."""
        return self._own(name) in self._shape

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor `name` as it is stored. Raises CheckpointError if there is none."""
        name = self._own(name)
        if name not in self._shape:
            raise CheckpointError(
                f"the checkpoint has no tensor {name}",
                hint="it is incomplete, or its config.json belongs to another model",
            )
        self._asked.add(name)
        return self._shape[name]

    def stored_type(self, name: str) -> str:
        """Element type of the tensor `name`, in the words of safetensors."""
        self.stored_shape(name)
        return self._type[self._own(name)]

    def stored(self, name: str, *types: str) -> npt.NDArray[Any]:
        """The tensor `name` as it is stored, which must have one of the element types."""
        with self._open(self._file_of(name, frozenset(types))) as file:
            values: npt.NDArray[Any] = file.get_tensor(self._own(name))
        self.advance(values.nbytes)
        return values

    def numbers(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """The tensor `name` of whole numbers, which must have `shape`."""
        self.expect(name, shape)
        self._numbers.add(name)
        return self.stored(name, *NUMBERS).astype(np.int64)

    def stored_floats(self, name: str) -> Float32:
        """The tensor `name`, of any shape."""
        with self._open(self._file_of(name)) as file:
            return self._checked(name, file.get_tensor(self._own(name)))

    def stored_bytes(self, name: str, first: int, last: int) -> UInt8:
        """Rows first..last of the matrix `name`, whose elements are bytes of any meaning."""
        file = self._file_of(name, _BYTES)
        if file not in self._byte_rows:
            self._byte_rows[file] = ByteRows(self._directory / file)
        rows = self._byte_rows[file].read(self._own(name), self.stored_shape(name), first, last)
        self.advance(rows.nbytes)
        return rows

    def divide(self, name: str, parts: Mapping[str, int]) -> None:
        """Give runs of rows of the matrix `name` names of their own: each, in order, its count.

        Raises CheckpointError unless they are all rows that there are.
        """
        count, width = self._matrix(name)
        if sum(parts.values()) != count:
            self.expect(name, (sum(parts.values()), width))
        first = 0
        for part, rows in parts.items():
            self._parts[part] = _Part(name, first, rows)
            first += rows

    def rows(
        self, name: str, start: int = 0, stop: int | None = None, *, unit: int = 1
    ) -> Iterator[Float32]:
        """The matrix `name`, columns `start` to `stop`, as runs of whole rows of a few MB.

        Each run but the last has a multiple of `unit` rows.
        """
        self._matrix(name)  # found missing even by who never looks at the rows
        return self._rows(name, start, stop, unit)

    def _rows(self, name: str, start: int, stop: int | None, unit: int) -> Iterator[Float32]:
        count, width = self._matrix(name)
        step = max(1, _PIECE_BYTES // (width * 4 * unit)) * unit
        whole, begin = self._whole(name)
        packed = self._packed(name)
        if packed is not None:
            for first in range(begin, begin + count, step):
                yield packed.rows(first, min(first + step, begin + count))[:, start:stop]
            return
        with self._open(self._file_of(whole)) as file:
            tensor = file.get_slice(whole)

            def read(first: int) -> Float32:
                piece = tensor[first : min(first + step, begin + count)]
                return self._checked(name, piece.reshape(-1, width)[:, start:stop])

            yield from ahead(read, range(begin, begin + count, step))

    def transposed(self, name: str) -> Iterator[Float32]:
        """The transpose of the matrix `name` as runs of whole rows of a few MB."""
        count, width = self._matrix(name)
        step = max(1, _PIECE_BYTES // (count * 4))
        whole, begin = self._whole(name)
        packed = self._packed(name)
        if packed is not None:
            for first in range(0, width, step):
                piece = packed.columns(first, min(first + step, width))
                yield np.ascontiguousarray(piece[begin : begin + count].T)
            return
        with self._open(self._file_of(whole)) as file:
            tensor = file.get_slice(whole)[begin : begin + count].reshape(count, width)

            def turn(first: int) -> Float32:
                columns = tensor[:, first : first + step]
                self.advance(columns.nbytes)
                return self._finite(name, _turned(columns))

            yield from ahead(turn, range(0, width, step))

    def slab(self, name: str, index: int) -> Float32:
        """The matrix `index` of the tensor `name`, which has three dimensions."""
        packed = self._packed(f"{name}.{index}")
        if packed is not None:
            return packed.rows(0, packed.shape[0])
        with self._open(self._file_of(name)) as file:
            return self._checked(name, file.get_slice(self._own(name))[index])

    def vector(self, name: str, width: int) -> Float32:
        """The tensor `name`, which must have the shape [width]."""
        self.expect(name, (width,))
        with self._open(self._file_of(name)) as file:
            return self._checked(name, file.get_tensor(self._own(name)))

    def rows_at(self, name: str, indices: Sequence[int]) -> list[Float32]:
        """Single rows of the matrix `name`."""
        self._matrix(name)
        whole, begin = self._whole(name)
        packed = self._packed(name)
        if packed is not None:
            return [packed.rows(begin + index, begin + index + 1)[0] for index in indices]
        with self._open(self._file_of(whole)) as file:
            tensor = file.get_slice(whole)
            rows = (tensor[begin + index : begin + index + 1] for index in indices)
            return [self._checked(name, row)[0] for row in rows]

    def flatten(self, name: str) -> None:
        """Take `name` as a matrix from now on: a row for each entry of its first axis."""
        shape = self.shape(name)
        self._shape[name] = (shape[0], math.prod(shape[1:]))

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise CheckpointError unless the tensor `name` has `shape`."""
        if self.shape(name) != shape:
            raise CheckpointError(
                f"{name} has the shape {list(self.shape(name))}, config.json means {list(shape)}",
                hint="the checkpoint's config.json belongs to another model",
            )

    def expect_rows(self, names: Sequence[str], rows: int, width: int) -> None:
        """Raise CheckpointError unless these matrices are as wide, and have as many rows in all."""
        *others, last = names
        for name in others:
            self.expect(name, (count := self.shape(name)[0], width))
            rows -= count
        self.expect(last, (rows, width))

    def taken(self) -> tuple[str, ...]:
        """Names used for the first time since this was last asked."""
        taken = tuple(self._taken)
        self._taken.clear()
        return taken

    def account(self, names: Iterable[str]) -> None:
        """Take these as used: what was made of them is stored already."""
        for name in names:
            self._used.add(name)
            self.advance(math.prod(self._shape[name]) * _SIZES.get(self._type[name], 1))

    def leave_out(self, prefix: str) -> None:
        """Take tensors whose names begin so as used: no graph has a place for them."""
        self._used.update(name for name in self._shape if name.startswith(prefix))

    def finish(self, harmless: re.Pattern[str]) -> None:
        """Refuse the first tensor that no part of the graph used, unless `harmless` matches."""
        self._refuse_but(self._used, harmless)

    def finish_counting(self, harmless: re.Pattern[str]) -> None:
        """The same before any is read, of graphs that were built without looking at weights.

        Refuses an element type that is not read, too. What a method of quantization stores it
        passes over: which tensors that takes is known when they are read.
        """
        if self._packing is not None:
            return
        for name in sorted(self._asked - self._used - self._numbers):
            self._expect_type(name, _FLOATS)
        self._refuse_but(self._asked | self._used, harmless)

    def _refuse_but(self, names: set[str], harmless: re.Pattern[str]) -> None:
        for name in sorted(self._shape.keys() - names):
            if not harmless.fullmatch(name):
                raise CheckpointError(
                    f"the tensor {name} has no place in the graph",
                    hint="the model differs from its architecture's published form",
                )

    def _headers(self, file: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
        with self._open(file) as opened:
            for name in opened.keys():  # noqa: SIM118  # not a mapping
                tensor = opened.get_slice(name)
                yield name, tuple(tensor.get_shape()), tensor.get_dtype()

    def _open(self, file: str) -> SafetensorsFile:
        path = self._directory / file
        if not path.exists():
            raise CheckpointError(f"the checkpoint has no {file}", hint="download it again")
        prefix = self._beside.get(file, "")
        opened = SafetensorsFile(path, file, self._entries.get(file), prefix)
        self._entries[file] = opened.entries
        return opened

    def _packed(self, name: str) -> Packed | None:
        """The matrix that `name` is or is a part of, if a method stores it; not read yet."""
        if self._packing is None:
            return None
        return self._packing.matrix(self, self._whole(name)[0])

    def _own(self, name: str) -> str:
        """`name` as the files have it."""
        return self.translate(name.removeprefix(self.prefix))

    def _file_of(self, name: str, types: frozenset[str] = _FLOATS) -> str:
        name = self._own(name)
        self.stored_shape(name)
        assert self._file is not None
        if name not in self._used:
            self._used.add(name)
            self._taken.append(name)
        self._expect_type(name, types)
        return self._file[name]

    def _expect_type(self, name: str, types: frozenset[str]) -> None:
        if self._type[name] not in types:
            raise CheckpointError(
                f"{name} has the element type {self._type[name]}",
                hint="use the publisher's checkpoint in bfloat16, float16 or float32",
            )

    def _whole(self, name: str) -> tuple[str, int]:
        """The tensor that `name` is stored in, and the row of it where it begins."""
        part = self._parts.get(name)
        return (self._own(name), 0) if part is None else (part.whole, part.first)

    def _matrix(self, name: str) -> tuple[int, int]:
        shape = self.shape(name)
        if len(shape) != 2:
            raise CheckpointError(f"{name} has the shape {list(shape)}, not a matrix")
        return shape[0], shape[1]

    def _checked(self, name: str, values: npt.NDArray[Any]) -> Float32:
        self.advance(values.nbytes)
        return self._finite(name, np.ascontiguousarray(values, dtype=np.float32))

    def _finite(self, name: str, floats: Float32) -> Float32:
        if not np.isfinite(floats).all():
            raise CheckpointError(
                f"{name} has values that are not finite",
                hint="download the checkpoint again and compare its files with the publisher's "
                "checksums; if they are the same, it was published so and cannot be built",
            )
        return floats


def _indexed(index: Mapping[str, object]) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX} has no weight_map", hint="download the checkpoint again")
    for file in weight_map.values():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise CheckpointError(
                f"{INDEX} names {file!r}, which is not a safetensors file here",
                hint="download the checkpoint again",
            )
    return weight_map


def _turned(columns: npt.NDArray[Any]) -> Float32:
    """The transpose, made of blocks that stay in the processor's cache: four times as fast."""
    turned = np.empty(columns.shape[::-1], np.float32)
    down, across = _BLOCK
    for row, column in product(range(0, len(columns), down), range(0, len(turned), across)):
        block = columns[row : row + down, column : column + across]
        turned[column : column + across, row : row + down] = block.astype(np.float32).T
    return turned


def _same(name: str) -> str:
    return name


def _ignore(_count: int) -> None: ...
