"""Durable replacement of several files at once, for one writer at a time.

Owns the order: write every temporary file, fsync each, rename each, fsync each directory. A
temporary name is the final name with `.tmp`, so that a killed writer leaves no more debris than
its successor overwrites. Refuses to decide what is published when: callers order their calls.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from appliance.fsops import fsync_dir, make_dirs

TEMPORARY_SUFFIX = ".tmp"
FILE_MODE = 0o600


def replace_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Create or replace each file, by its path relative to `directory`. Raises OSError.

    Each file is replaced atomically, the set is not.
    """
    targets = {directory / name: data for name, data in files.items()}
    parents = list(dict.fromkeys(target.parent for target in targets))
    for parent in parents:
        make_dirs(parent)
    temporaries = {target: _temporary(target) for target in targets}
    try:
        _write_all({temporaries[target]: data for target, data in targets.items()})
        for target, temporary in temporaries.items():
            temporary.rename(target)
    except OSError:
        for temporary in temporaries.values():  # a full disk needs the room
            with suppress(OSError):
                temporary.unlink()
        raise
    for parent in parents:
        fsync_dir(parent)


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`. Raises OSError; then any part of it may be written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _temporary(target: Path) -> Path:
    return target.with_name(target.name + TEMPORARY_SUFFIX)


def _write_all(files: Mapping[Path, bytes]) -> None:
    """Write all files, then make all of them durable."""
    descriptors: list[int] = []
    try:
        for path, data in files.items():
            descriptors.append(_write(path, data))
        for fd in descriptors:
            os.fsync(fd)
    finally:
        for fd in descriptors:
            os.close(fd)


def _write(path: Path, data: bytes) -> int:
    """Write `data` to `path`; returns the open descriptor, not yet synced."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    try:
        os.fchmod(fd, FILE_MODE)
        write_at(fd, data, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd
