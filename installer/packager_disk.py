"""What the packager's disks refuse, in words: no room, no permission.

Owns the question for room before anything is written, and what an error of the operating system
about a file becomes. Refuses to guess: what is not about a file stays as it is.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import ApplianceError, CapacityError, StorageError

ELSEWHERE = "make room, or name a directory on another disk with --out"
TEMPORARY = "temporary files (TMPDIR, else /tmp)"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_BAD = frozenset(
    {
        *(errno.EEXIST, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ELOOP),
        *(errno.ENAMETOOLONG, errno.ENOTDIR),
    }
)


def amount(size: int) -> str:
    """`size` bytes, for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def taken(directory: Path, sizes: Iterable[int]) -> int:
    """Bytes that files of these sizes take on the disk of `directory`, which has whole blocks."""
    block = os.statvfs(directory).f_frsize
    return sum(-(-size // block) * block for size in sizes)


def expect_room(directory: Path, needed: int, what: str) -> None:
    """Raise CapacityError unless the disk of `directory`, which exists, has `needed` bytes free.

    `what` needs them, in the words of the refusal.
    """
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise CapacityError(
            f"{what} {amount(needed)}, and the disk of {directory.parent} has {amount(free)} free",
            hint=ELSEWHERE,
        )


def about_a_file(error: OSError) -> ApplianceError | None:
    """What `error` says of a file or a disk; None if it is about neither, and may be our bug."""
    path = error.filename
    if error.errno in _FULL:
        which = "that is written to" if path is None else f"that holds {path}"
        return CapacityError(
            f"the disk {which} is full",
            hint=f"make room, also for {TEMPORARY}, and run the command again",
        )
    if path is None:
        return _without_path(error)
    if error.errno in _FORBIDDEN:
        return StorageError(
            f"{path} cannot be used: {error.strerror}",
            hint="run the command as a user who may (on a node: root), or name another place",
        )
    if error.errno in _BAD:
        return StorageError(
            f"{path} cannot be used: {error.strerror}", hint="check the path and the disk"
        )
    return None


def _without_path(error: OSError) -> ApplianceError | None:
    """tempfile's way of saying that nothing can be written anywhere has no path."""
    if error.errno != errno.ENOENT:
        return None
    return StorageError(error.strerror or str(error), hint=f"make room for {TEMPORARY}")


@contextmanager
def refusals_of_the_disk() -> Iterator[None]:
    """Turn OSError about a file into typed errors, and say of a full disk what --out can do."""
    try:
        yield
    except CapacityError as error:
        error.hint = ELSEWHERE
        raise
    except OSError as error:
        refusal = about_a_file(error)
        if refusal is None:
            raise
        raise refusal from error
