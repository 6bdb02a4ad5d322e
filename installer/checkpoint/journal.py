"""The journal of an unfinished build: which tensors its weight files hold, one JSON line each.

Owns what makes a stored tensor valid: the file's bytes up to its end have the SHA-256 that was
written down after it. Nothing is taken from a file's length or time, so a file that a kill or a
power cut left half-written is cut back to what its digests prove. Refuses nothing: what it cannot
prove, it forgets.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

_READ_BYTES = 1024 * 1024


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor in a weight file.

    Attributes:
        file: name of the weight file; `offset` and `size` in bytes; `dtype` as ONNX numbers it.
        sha256: of the file from its beginning to the tensor's end, hex.
        sources: the checkpoint's tensors that were first used for it; a tensor without any was
            made from what those before it left behind.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    file: str
    offset: int
    size: int
    sha256: str
    sources: tuple[str, ...]

    @property
    def end(self) -> int:
        return self.offset + self.size


class Journal:
    """Appends records to the file `path`; `kept` are those that were proven when it was opened."""

    def __init__(self, path: Path, weights: Path) -> None:
        """Read what an earlier build left in `path`, and cut the files in `weights` to fit it."""
        kept = _whole_groups(_proven(_read(path), weights))
        self.kept = tuple(kept)
        _cut(weights, kept)
        self._file: BinaryIO = path.open("wb")
        self._write(kept)

    def append(self, record: Record) -> None:
        """Write down a tensor whose bytes are in its file."""
        self._write((record,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, records: Iterable[Record]) -> None:
        self._file.writelines(msgspec.json.encode(record) + b"\n" for record in records)
        self._file.flush()


def _read(path: Path) -> list[Record]:
    """The records up to the first line that is not one."""
    records: list[Record] = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for line in lines:
        try:
            records.append(msgspec.json.decode(line, type=Record))
        except msgspec.DecodeError:
            break
    return records


def _proven(records: list[Record], weights: Path) -> list[Record]:
    """The records up to the first whose bytes are not what they were."""
    proven: list[Record] = []
    by_file: dict[str, list[Record]] = {}
    for record in records:
        by_file.setdefault(record.file, []).append(record)
    for name, those in by_file.items():
        good = _proven_in(weights / name, those)
        proven += good
        if len(good) < len(those):
            break
    return proven


def _proven_in(path: Path, records: list[Record]) -> list[Record]:
    if not path.is_file():
        return []
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index, record in enumerate(records):
            if record.end < file.tell() or not digest_to(file, record.end, digest):
                return records[:index]
            if digest.hexdigest() != record.sha256:
                return records[:index]
    return records


def digest_to(file: BinaryIO, end: int, digest: hashlib._Hash) -> bool:
    """Feed `digest` with the file's bytes up to `end`; False if it is shorter."""
    while left := end - file.tell():
        piece = file.read(min(left, _READ_BYTES))
        if not piece:
            return False
        digest.update(piece)
    return True


def _whole_groups(records: list[Record]) -> list[Record]:
    """`records` without the last group, of which more may have been to come.

    A group is a tensor for which the checkpoint was read and those after it that were made from
    the same reading, such as the scales of integers.
    """
    starts = [index for index, record in enumerate(records) if record.sources]
    return records[: starts[-1]] if starts else []


def _cut(weights: Path, records: list[Record]) -> None:
    """Leave in the weight files what the records stand for, and nothing else."""
    ends: dict[str, int] = {}
    for record in records:
        ends[record.file] = record.end
    for path in weights.glob("weights-*.bin"):
        if path.name in ends:
            os.truncate(path, ends[path.name])
        else:
            path.unlink()
