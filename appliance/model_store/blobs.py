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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.bundle.specs import FileEntry
from appliance.errors import CapacityError, DigestError, LayoutError, StorageError
from appliance.fsops import fsync_dir, make_dirs, open_regular, resolve_inside

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

    def missing(self, entries: Iterable[FileEntry]) -> int:
        """Bytes of `entries` that an import would have to copy, as far as this user can see."""
        sizes = {entry.sha256: entry.size for entry in entries}
        return sum(s for digest, s in sizes.items() if not os.access(self.path(digest), os.F_OK))

    def add_file(self, source: Path, entry: FileEntry, *, name: str, advance: Advance) -> None:
        """Import `source/entry.path`; a blob that is already here is not read again.

        Raises what `copy_verified` raises.
        """
        blob = self.path(entry.sha256)
        if blob.is_file():
            advance(entry.size)
            return
        partial = self._incoming / entry.sha256
        copy_verified(source, entry, partial, name=name, advance=advance)
        with storage_errors(blob):
            partial.rename(blob)
            fsync_dir(self._directory)

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


def copy_verified(
    source: Path, entry: FileEntry, target: Path, *, name: str, advance: Advance
) -> None:
    """Make `target` the durable copy of `source/entry.path`, hashed while it is copied.

    `name` is what errors call the file. Raises DigestError if its bytes are not the signed ones,
    LayoutError if it is no plain file, CapacityError if the disk is full, StorageError if it
    fails; `target` then does not exist.
    """
    try:
        _copy(source, entry, target, name, advance)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about our own disk into CapacityError or StorageError naming the file.

    `path` is named if the error names none.
    """
    try:
        yield
    except OSError as error:
        path = Path(error.filename) if error.filename else path
        if error.errno in _OUT_OF_SPACE:
            raise CapacityError(
                f"the disk that holds {path.parent} is full",
                hint="free some space (`appliance models remove`) and run the command again",
            ) from error
        raise StorageError(
            f"{path} cannot be written: {error.strerror}",
            hint="check the disk (`dmesg`), then run the command again",
        ) from error


def _copy(source: Path, entry: FileEntry, target: Path, name: str, advance: Advance) -> None:
    with storage_errors(target):
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        with storage_errors(target):
            os.posix_fallocate(fd, 0, entry.size)
        hasher = hashlib.sha256()
        for chunk in _read_exactly(source, entry, name):
            hasher.update(chunk)
            with storage_errors(target):
                _write_all(fd, chunk)
            advance(len(chunk))
        if hasher.hexdigest() != entry.sha256:
            raise _altered(name, "its bytes are not the signed ones")
        with storage_errors(target):
            os.fchmod(fd, 0o644)
            os.fsync(fd)
    finally:
        os.close(fd)


def _read_exactly(source: Path, entry: FileEntry, name: str) -> Iterator[memoryview]:
    """The bytes of a plain file of exactly `entry.size` bytes, in chunks of one buffer."""
    fd = open_regular(resolve_inside(source, entry.path), name=name)
    with os.fdopen(fd, "rb", buffering=0) as file:
        size = os.fstat(fd).st_size
        if size != entry.size:
            raise _altered(name, f"it has {size} bytes, signed are {entry.size}")
        buffer = memoryview(bytearray(min(CHUNK_BYTES, entry.size)))
        left = entry.size
        while left:
            try:
                count = file.readinto(buffer[: min(len(buffer), left)])
            except OSError as error:
                raise _unreadable(name, error) from error
            if not count:
                raise _altered(name, f"it ends {left} bytes early")
            left -= count
            yield buffer[:count]


def _altered(name: str, reason: str) -> DigestError:
    return DigestError(f"{name} was altered: {reason}", path=name, hint=_FRESH_COPY)


def _unreadable(name: str, error: OSError) -> LayoutError:
    return LayoutError(f"{name} cannot be read: {error.strerror}", path=name, hint=_FRESH_COPY)


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
