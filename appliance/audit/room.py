"""Room on the log's disk: a ballast kept back for the end, and a warning before it is needed.

Owns the file `ballast`, no part of the log, whose blocks are reserved. When the disk is full it is
given up, so that what has begun can still be closed and what is administered be recorded; nothing
new is begun until there is room for it again. Refuses to take the last free bytes for itself.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Final

BALLAST_NAME = "ballast"
LEVELS: Final = (0.75, 0.9)
"""Shares of the disk in use from which on there are warnings."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_logger = logging.getLogger(__name__)


def is_full(error: BaseException) -> bool:
    """Whether `error` came of a disk, or a quota, without room."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in _FULL


def used_share(directory: Path) -> float:
    """Share in use of the file system of `directory`, as its users see it. Raises OSError."""
    found = os.statvfs(directory)
    used = found.f_blocks - found.f_bfree
    return used / max(1, used + found.f_bavail)


class Room:
    """The room in `directory`. One thread at a time."""

    def __init__(self, directory: Path, ballast_bytes: int) -> None:
        self._directory = directory
        self._path = directory / BALLAST_NAME
        self._bytes = ballast_bytes
        self._warned = 0

    def keep(self) -> bool:
        """Have the ballast, or find no room for it; whether it is there."""
        if self._bytes == 0 or self._size() == self._bytes:
            return True
        try:
            self._reserve()
        except OSError:
            self._path.unlink(missing_ok=True)
            return False
        return True

    def give_up(self) -> bool:
        """Give the ballast's room to the log; whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        _logger.error("the disk of the audit log is full: only what has begun is recorded now")
        return True

    def warn(self) -> None:
        """Say once that a level was passed; again after it was left."""
        try:
            share = used_share(self._directory)
        except OSError:
            return
        level = sum(share >= each for each in LEVELS)
        if level > self._warned:
            _logger.warning("the disk of the audit log is %.0f %% full", 100 * share)
        self._warned = level

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return -1

    def _reserve(self) -> None:
        found = os.statvfs(self._directory)
        if found.f_bavail * found.f_frsize < 2 * self._bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._bytes)
        finally:
            os.close(fd)
