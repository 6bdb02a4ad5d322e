"""Durable file operations, locks, and the one guard against path escapes.

Owns every write that must survive a power cut. Refuses to know what the bytes mean. The order
is always: write to a temporary name in the same directory, fsync the file, rename, fsync the
directory; a reader sees the old bytes or the new ones, never a mixture (POSIX rename(2)).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from appliance.errors import LayoutError, LockedError

_FORBIDDEN = frozenset('\\:*?"<>|')
_MAX_NAME_BYTES = 255
_CHUNK_BYTES = 1024 * 1024


def fsync_dir(path: Path) -> None:
    """Make the names in directory `path` durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durable(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Create or replace `path` atomically with `data`. Raises OSError; the old file then stands."""
    with _durable_beside(path, data, mode) as temporary:
        temporary.rename(path)
    fsync_dir(path.parent)


def create_durable(path: Path, data: bytes, *, mode: int = 0o600) -> bool:
    """Create `path` with `data` unless it exists; True if this call created it. Raises OSError.

    link(2) fails when the name exists, so two processes cannot both win.
    """
    with _durable_beside(path, data, mode) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    fsync_dir(path.parent)
    return True


def symlink_durable(path: Path, target: str) -> None:
    """Point the symbolic link `path` at `target` atomically, replacing an older link."""
    temporary = _temporary(path)
    temporary.symlink_to(target)
    try:
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def make_dirs(path: Path, *, mode: int = 0o700) -> None:
    """Create `path` and its parents; each new directory is durable and has exactly `mode`."""
    if path.is_dir():
        return
    make_dirs(path.parent, mode=mode)
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        return
    path.chmod(mode)
    fsync_dir(path.parent)


def inherit_owner(path: Path) -> None:
    """Give `path` the owner and group of the directory it is in, if this process is root.

    Commands run as root; the daemons that go on with what they wrote do not.
    """
    if os.geteuid() == 0:
        parent = path.parent.stat()
        os.chown(path, parent.st_uid, parent.st_gid)


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = False, mode: int = 0o600) -> Iterator[int]:
    """Hold an flock(2) on `path`; its descriptor, which holds it in whatever process has it.

    Raises LockedError at once if it is taken and not `wait`."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise LockedError(
                f"another process is working on {path.parent}",
                hint="wait for it to finish, then run the command again",
            ) from None
        yield fd
    finally:
        os.close(fd)


def check_relative(name: str) -> PurePosixPath:
    """The one path-escape guard: accept a portable relative path, refuse everything else.

    Refused: absolute paths, `.` and `..`, empty or over-long parts, control and non-ASCII
    characters (Unicode normalisation collides), characters FAT cannot hold, a trailing dot or
    space (FAT drops them). Raises LayoutError naming the path.
    """
    parts = name.split("/")
    for part in parts:
        bad = (
            part in {"", ".", ".."}
            or len(part) > _MAX_NAME_BYTES
            or part[-1] in ". "
            or not part.isascii()
            or not part.isprintable()
            or any(c in _FORBIDDEN for c in part)
        )
        if bad:
            raise LayoutError(
                f"the path {name!r} is not allowed",
                path=name,
                hint="the media or bundle is damaged or hostile: get a fresh copy",
            )
    return PurePosixPath(*parts)


def resolve_inside(base: Path, name: str) -> Path:
    """`base/name`, refusing names that leave `base` and links on the way. Raises LayoutError."""
    path = base
    for part in check_relative(name).parts:
        path = path / part
        if path.is_symlink():
            raise LayoutError(
                f"{name!r} goes through a symbolic link",
                path=name,
                hint="media and bundles hold plain files and directories only",
            )
    return path


def open_regular(path: Path, *, name: str) -> int:
    """A descriptor for reading the plain file `path`. Links, pipes and devices are refused.

    `name` is what errors call the file. Raises LayoutError; the caller closes the descriptor.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(name, error.strerror or str(error)) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _unreadable(name, "it is not a plain file")
    return fd


def read_regular(path: Path, *, limit: int, name: str) -> bytes:
    """The bytes of the plain file `path`, refusing more than `limit`. Raises LayoutError."""
    fd = open_regular(path, name=name)
    pieces: list[bytes] = []
    left = limit + 1
    with os.fdopen(fd, "rb") as file:
        try:
            # Not at once: room for all of `limit` would be taken whatever the file's length.
            while left and (piece := file.read(min(left, _CHUNK_BYTES))):
                pieces.append(piece)
                left -= len(piece)
        except OSError as error:
            raise _unreadable(name, error.strerror or str(error)) from None
    if not left:
        raise _unreadable(name, f"it is longer than {limit} bytes")
    return b"".join(pieces)


def hash_regular(
    path: Path, *, name: str, advance: Callable[[int], None] | None = None, uncached: bool = False
) -> tuple[int, str]:
    """Size and SHA-256 of the plain file `path`; `advance` is told the bytes as they are read.

    `uncached` drops the file's pages first, so that the bytes come from the medium itself.
    Raises LayoutError.
    """
    fd = open_regular(path, name=name)
    digest, size = hashlib.sha256(), 0
    with os.fdopen(fd, "rb", buffering=0) as file:
        if uncached:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                if advance is not None:
                    advance(len(chunk))
        except OSError as error:
            raise _unreadable(name, error.strerror or str(error)) from None
    return size, digest.hexdigest()


def walk_files(base: Path, *, prefix: str = "") -> dict[str, int]:
    """Relative path -> size of every plain file below `base`, sorted.

    `prefix` is what errors put before a path.

    Raises LayoutError for anything that is not a plain file or a directory, and for names that
    `check_relative` refuses. Empty directories hold nothing and are passed over.
    """
    return {name.removeprefix(prefix): size for name, size in sorted(_walk(base, prefix))}


def _walk(directory: Path, prefix: str) -> Iterator[tuple[str, int]]:
    try:
        entries = list(os.scandir(directory))
    except OSError as error:
        raise _unreadable(prefix or ".", error.strerror or str(error)) from None
    for entry in entries:
        name = f"{prefix}{entry.name}"
        check_relative(name)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{name}/")
        elif entry.is_file(follow_symlinks=False):
            yield name, entry.stat(follow_symlinks=False).st_size
        else:
            raise _unreadable(name, "it is not a plain file")


def _unreadable(name: str, reason: str) -> LayoutError:
    return LayoutError(
        f"{name} cannot be used: {reason}",
        path=name,
        hint="the media or bundle is damaged or hostile: get a fresh copy",
    )


@contextmanager
def _durable_beside(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    """A file with `data`, already on the disk, in the directory of `path`; gone at the end."""
    temporary = _temporary(path)
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            _write_all(fd, data)
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
