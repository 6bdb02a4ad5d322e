"""A whole copy of a log in use, for an auditor's machine.

Owns what belongs to a log, and that the copy is of one moment: publishers wait meanwhile, writers
do not. Refuses to write into a directory that has something in it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from appliance.audit.checkpoint import CHECKPOINT_NAME
from appliance.audit.cosigned import COSIGNED
from appliance.audit.epochs import EPOCHS
from appliance.audit.segment import SEGMENTS
from appliance.audit.signer import VKEY_NAME
from appliance.audit.state import STATE_NAME
from appliance.audit.storage import TEMPORARY_SUFFIX
from appliance.audit.tree import LOCK_NAME
from appliance.errors import ConflictError, NotFoundError, StorageError
from appliance.fsops import exclusive_lock, fsync_dir, make_dirs

_FILES = (CHECKPOINT_NAME, STATE_NAME, VKEY_NAME)
_DIRECTORIES = ("tile", EPOCHS, COSIGNED, SEGMENTS)


def export(directory: Path, target: Path) -> int:
    """Copy the log in `directory` to `target`, durably; returns how many files.

    Raises NotFoundError, ConflictError if `target` is not empty, StorageError.
    """
    if not (directory / CHECKPOINT_NAME).exists():
        raise NotFoundError(f"there is no audit log in {directory}", hint="check the path")
    try:
        make_dirs(target)
        if any(target.iterdir()):
            raise ConflictError(f"{target} is not empty", hint="name a new directory")
        with ExitStack() as stack:
            if (directory / LOCK_NAME).exists():  # a copy has none, and nobody who publishes
                stack.enter_context(exclusive_lock(directory / LOCK_NAME, wait=True))
            names = list(_names(directory))
            for name in names:
                _copy(directory / name, target / name)
        for parent in {(target / name).parent for name in names}:
            fsync_dir(parent)
    except OSError as error:
        raise StorageError(
            f"the log cannot be copied to {target}: {error.strerror}", hint=_hint(error)
        ) from error
    return len(names)


def _hint(error: OSError) -> str:
    if error.errno == errno.EROFS:
        return "it is mounted read-only, as a stick with media is: `mount -o remount,rw` it first"
    return "check its free space, and who may write there"


def _names(directory: Path) -> Iterator[str]:
    yield from (name for name in _FILES if (directory / name).exists())
    for name in _DIRECTORIES:
        for path in sorted((directory / name).rglob("*")):
            if path.is_file() and path.suffix != TEMPORARY_SUFFIX:
                yield path.relative_to(directory).as_posix()


def _copy(source: Path, target: Path) -> None:
    make_dirs(target.parent)
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())
