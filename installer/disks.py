"""What is left on the disks of a node, and what stops without it.

Owns which part of a node stops when its disk is full, and from when on that is said: while there is
still room to make room. Directories on one file system are one disk. Refuses to reckon how long it
will last: what is used next, a model or a million requests, nobody knows.
"""

from __future__ import annotations

import shutil
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

Room = Literal["enough", "short", "none"]


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """One file system that a node writes to."""

    path: str
    """Of the first directory on it."""
    holds: tuple[str, ...]
    """What of the node lies there."""
    free_bytes: int
    total_bytes: int
    room: Room
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
    full = max(FULL_BYTES, 2 * config.audit.ballast_bytes)
    found: dict[int, list[_Part]] = {}
    for part in _parts(config):
        try:
            found.setdefault(part.directory.stat().st_dev, []).append(part)
        except OSError:
            continue
    return tuple(_disk(parts, full) for parts in found.values())


def room_of(free: int, total: int, full: int = FULL_BYTES) -> Room:
    """Whether `free` of `total` bytes is enough, while `full` is what cannot be used."""
    if free < full:
        return "none"
    return "short" if free < min(NEAR_SHARE * total, NEAR_BYTES) else "enough"


def _parts(config: Config) -> Iterable[_Part]:
    layout = config.layout
    yield _Part(
        layout.state,
        "keys and usage",
        "keys, projects and prices cannot be changed, and usage is added up later",
        "a larger disk",
    )
    yield _Part(
        layout.audit,
        "the audit log",
        "requests are refused (503 `audit_unavailable`); what runs is finished",
        "`appliance audit prune --older-than DAYS`, after `appliance audit export`",
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
    found = shutil.disk_usage(parts[0].directory)
    # As an ordinary user sees it: what is kept for root is neither free nor there.
    free, total = found.free, found.free + found.used
    # What makes most room is said first.
    remedies = dict.fromkeys(part.remedy for part in reversed(parts))
    return Disk(
        path=str(parts[0].directory),
        holds=tuple(part.holds for part in parts),
        free_bytes=free,
        total_bytes=total,
        room=room_of(free, total, full),
        stops=tuple(part.stops for part in parts),
        remedies=tuple(remedies),
    )
