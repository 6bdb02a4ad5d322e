"""Reading records back, in order, while others may be appending.

Owns the walk from the published bundles into the journal. It trusts the disk: whether the
records are genuine is what fsck.py tells.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from appliance.audit.event import AnyEvent, decode_leaf
from appliance.audit.journal import LOCK_NAME as JOURNAL_LOCK
from appliance.audit.journal import JournalReader
from appliance.audit.prune import first_kept
from appliance.audit.state import read_state
from appliance.audit.tiles import TILE_WIDTH, TileReader
from appliance.audit.tree import LOCK_NAME as PUBLISH_LOCK
from appliance.errors import AuditError


def read_events(directory: Path, start: int = 0) -> Iterator[tuple[int, AnyEvent]]:
    """(number, record) of every acknowledged record from `start` on, in order.

    Begins with the first that was not pruned. Raises AuditError naming what is missing or damaged.
    """
    with _readable(directory):
        for seq, leaf in _read_leaves(directory, start):
            yield seq, decode_leaf(leaf)


def first_record(directory: Path) -> int:
    """Number of the first record that was not pruned. Raises AuditError."""
    with _readable(directory):
        return first_kept(directory, read_state(directory).size)


def next_record(directory: Path) -> int:
    """Number that the next record will have. Raises AuditError."""
    with _readable(directory):
        size = read_state(directory).size
        newest = deque(_read_leaves(directory, size), maxlen=1)
        return newest[0][0] + 1 if newest else size


@contextmanager
def _readable(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AuditError(
            f"the audit log in {directory} cannot be read: {error.strerror}",
            hint="run the command as root, or name the log's directory with --dir",
        ) from error


def _read_leaves(directory: Path, start: int) -> Iterator[tuple[int, bytes]]:
    position = max(start, first_kept(directory, read_state(directory).size))
    while (size := read_state(directory).size) > position:
        yield from _read_bundles(directory, position, size)
        position = size
    with _standing_still(directory):
        size = read_state(directory).size
        rest = list(_read_bundles(directory, position, size))
        rest += JournalReader(directory, max(position, size)).read_rest()
    yield from rest


def _read_bundles(directory: Path, start: int, size: int) -> Iterator[tuple[int, bytes]]:
    reader = TileReader(directory, size)
    for index in range(start // TILE_WIDTH, -(-size // TILE_WIDTH)):
        for seq, leaf in enumerate(reader.leaves(index), index * TILE_WIDTH):
            if seq >= start:
                yield seq, leaf


@contextmanager
def _standing_still(directory: Path) -> Iterator[None]:
    """Keep publishers and writers waiting; a copy of a log has no locks and no writers."""
    with ExitStack() as stack:
        for name in (PUBLISH_LOCK, JOURNAL_LOCK):
            path = directory / name
            if path.exists():
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_SH)
        yield
