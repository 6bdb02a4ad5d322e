"""What is left on the disks of a node, and what stops without it.

Owns which part of a node stops when its disk is full, and from when on that is said: while there is
still room to make room. Directories on one file system are one disk. A disk is full, too, when it
can hold no more files, its inodes being used up. Refuses to reckon how long it will last: what is
used next, a model or a million requests, nobody knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec

from appliance.config import Config

NEAR_SHARE: Final = 0.1
NEAR_BYTES: Final = 10 * 1024**3
"""A disk is nearly full when less than this share of it is free, and less than so many bytes."""
FULL_BYTES: Final = 8 * 1024 * 1024
"""And full when less than this is free, or than twice the ballast of the audit log."""
NEAR_INODES: Final = 10_000
"""As NEAR_BYTES, of files that the disk can still hold: the log has one for 256 records."""
FULL_INODES: Final = 16
"""As FULL_BYTES: what is replaced is written beside first."""

Room = Literal["enough", "short", "none"]
_WORSE: Final = ("enough", "short", "none")


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """One file system that a node writes to."""

    path: str
    """Of the first directory on it."""
    holds: tuple[str, ...]
    """What of the node lies there."""
    free_bytes: int
    total_bytes: int
    free_inodes: int
    total_inodes: int
    """0 where the file system makes them as it needs them."""
    room: Room
    """Of bytes or of inodes, whichever has less."""
    inodes: Room
    """Of inodes alone."""
    stops: tuple[str, ...]
    """What does not work while it is full."""
    remedies: tuple[str, ...]
    """Commands and settings that make room."""


class _Part(msgspec.Struct, frozen=True):
    """A directory, and what depends on room for it."""

    directory: Path
    holds: str
    stops: str
    remedy: str


def disks_of(config: Config) -> tuple[Disk, ...]:
    """The disks of a node, that of the state first; what is not there yet has none."""
    full = full_below(config)
    found: dict[int, list[_Part]] = {}
    for part in _parts(config):
        try:
            found.setdefault(part.directory.stat().st_dev, []).append(part)
        except OSError:
            continue
    return tuple(_disk(parts, full) for parts in found.values())


def full_below(config: Config) -> int:
    """The free bytes below which a disk of this node counts as full."""
    return max(FULL_BYTES, 2 * config.audit.ballast_bytes)


def room_of(free: int, total: int, full: int = FULL_BYTES) -> Room:
    """Whether `free` of `total` bytes is enough, while `full` is what cannot be used."""
    if free < full:
        return "none"
    return "short" if free < min(NEAR_SHARE * total, NEAR_BYTES) else "enough"


def inodes_of(free: int, total: int) -> Room:
    """Whether `free` of `total` inodes are enough; always where there is no total."""
    if not total:
        return "enough"
    if free < FULL_INODES:
        return "none"
    return "short" if free < min(NEAR_SHARE * total, NEAR_INODES) else "enough"


def _parts(config: Config) -> Iterable[_Part]:
    layout = config.layout
    yield _Part(
        layout.state,
        "keys and usage",
        "keys, projects and prices cannot be changed, and usage is added up later",
        "a larger disk",
    )
    yield _Part(
        layout.releases,
        "programs",
        "no release can be installed",
        "a larger disk for /opt",
    )
    yield _Part(
        layout.audit,
        "the audit log",
        "requests are refused (503 `audit_unavailable`); what runs is finished",
        "`appliance audit prune --older-than DAYS`, after `appliance audit export`",
    )
    if config.audit.content == "sealed":
        yield _Part(
            layout.audit_content,
            "content that is sealed to the auditor",
            "requests are refused (503 `audit_unavailable`)",
            "`appliance audit prune --older-than DAYS`, after the auditor has a copy",
        )
    if config.api.store_responses or config.api.store_files:
        yield _Part(
            layout.responses,
            "stored responses and files",
            "uploads are refused, and batches end with what was done",
            "a smaller `api.stored_file_hours`",
        )
    yield _Part(
        layout.models,
        "models",
        "no model can be added",
        "`appliance models remove NAME VERSION`",
    )
    yield _Part(
        layout.artifacts,
        "compiled models",
        "no model can be compiled",
        "`appliance models remove NAME VERSION`",
    )


def _disk(parts: list[_Part], full: int) -> Disk:
    found = os.statvfs(parts[0].directory)
    # As an ordinary user sees it: what is kept for root is neither free nor there.
    free, used = (n * found.f_frsize for n in (found.f_bavail, found.f_blocks - found.f_bfree))
    rooms: tuple[Room, Room] = (
        room_of(free, free + used, full),
        inodes_of(found.f_favail, found.f_files),
    )
    # What makes most room is said first.
    remedies = dict.fromkeys(part.remedy for part in reversed(parts))
    return Disk(
        path=str(parts[0].directory),
        holds=tuple(part.holds for part in parts),
        free_bytes=free,
        total_bytes=free + used,
        free_inodes=found.f_favail,
        total_inodes=found.f_files,
        room=max(rooms, key=_WORSE.index),
        inodes=rooms[1],
        stops=tuple(part.stops for part in parts),
        remedies=tuple(remedies),
    )
