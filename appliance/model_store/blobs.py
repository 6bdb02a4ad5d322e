"""Content-addressed files: `<digest>` holds exactly the bytes with that SHA-256.

Owns the one path by which bytes enter the node: read once, hash while copying into a
preallocated file, compare, fsync, rename. Refuses to keep a file whose bytes differ from the
signed ones, and never reads the source twice: a stick may answer differently the second time.
A killed import leaves finished files in place, so the next one takes up where it stopped.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.bundle.manifest import FileEntry
from appliance.errors import CapacityError, DigestError, LayoutError, StorageError
from appliance.fsops import fsync_dir, make_dirs, resolve_inside

CHUNK_BYTES = 4 * 1024 * 1024
_OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_FRESH_COPY = "get a fresh copy of the media or bundle and run the command again"

Advance = Callable[[int], None]
"""Called with each number of bytes that is done; they add up to the size of what was asked for."""


class BlobStore:
    """The files of all bundles, each kept once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._incoming = directory / "incoming"

    def path(self, digest: str) -> Path:
        """Where the blob `digest` is, or would be."""
        return self._directory / digest

    def prepare(self) -> None:
        """Create the directories. Raises OSError."""
        make_dirs(self._incoming, mode=0o755)

    def missing(self, entries: Iterator[FileEntry]) -> int:
        """Bytes of `entries` that an import would have to copy."""
        sizes = {entry.sha256: entry.size for entry in entries}
        return sum(size for digest, size in sizes.items() if not self.path(digest).is_file())

    def add_file(self, source: Path, entry: FileEntry, *, advance: Advance) -> Path:
        """Import `source/entry.path`; a blob that is already here is not read again.

        Raises DigestError if the bytes are not the signed ones, LayoutError if it is no plain
        file, CapacityError if the disk is full, StorageError if either side fails.
        """
        blob = self.path(entry.sha256)
        if blob.is_file():
            advance(entry.size)
            return blob
        partial = self._incoming / entry.sha256
        try:
            _copy(source, entry, partial, advance)
            with storage_errors(blob):
                partial.rename(blob)
                fsync_dir(self._directory)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return blob

    def collect(self) -> int:
        """Delete blobs that no bundle links to, and partial files. Returns bytes freed."""
        freed = 0
        for path in [*self._directory.iterdir(), *self._incoming.iterdir()]:
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                path.unlink()
                freed += status.st_size
        fsync_dir(self._directory)
        return freed


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about our own disk into CapacityError or StorageError naming `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _OUT_OF_SPACE:
            raise CapacityError(
                f"the disk that holds {path.parent} is full",
                hint="free some space (`appliance models remove`) and run the command again",
            ) from error
        raise StorageError(
            f"{path} cannot be written: {error.strerror}",
            hint="check the disk (`dmesg`), then run the command again",
        ) from error


def _copy(source: Path, entry: FileEntry, target: Path, advance: Advance) -> None:
    with storage_errors(target):
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb", buffering=0) as file:
        with storage_errors(target):
            os.posix_fallocate(fd, 0, entry.size)
        hasher = hashlib.sha256()
        for chunk in _read_exactly(source, entry):
            hasher.update(chunk)
            with storage_errors(target):
                _write_all(file.fileno(), chunk)
            advance(len(chunk))
        if hasher.hexdigest() != entry.sha256:
            raise _altered(entry, "its bytes are not the signed ones")
        with storage_errors(target):
            os.fchmod(fd, 0o644)
            os.fsync(fd)


def _read_exactly(source: Path, entry: FileEntry) -> Iterator[memoryview]:
    """The bytes of a plain file of exactly `entry.size` bytes, in chunks of one buffer."""
    path = resolve_inside(source, entry.path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(entry, error) from error
    with os.fdopen(fd, "rb", buffering=0) as file:
        _check_plain(os.fstat(fd), entry)
        buffer = memoryview(bytearray(min(CHUNK_BYTES, entry.size)))
        left = entry.size
        while left:
            try:
                count = file.readinto(buffer[: min(len(buffer), left)])
            except OSError as error:
                raise _unreadable(entry, error) from error
            if not count:
                raise _altered(entry, f"it ends {left} bytes early")
            left -= count
            yield buffer[:count]


def _check_plain(status: os.stat_result, entry: FileEntry) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise LayoutError(f"{entry.path} is not a plain file", path=entry.path, hint=_FRESH_COPY)
    if status.st_size != entry.size:
        raise _altered(entry, f"it has {status.st_size} bytes, signed are {entry.size}")


def _altered(entry: FileEntry, reason: str) -> DigestError:
    return DigestError(f"{entry.path} was altered: {reason}", path=entry.path, hint=_FRESH_COPY)


def _unreadable(entry: FileEntry, error: OSError) -> StorageError:
    return StorageError(f"{entry.path} cannot be read: {error.strerror}", hint=_FRESH_COPY)


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
