"""What an installation takes of each disk of the node, and which of them have too little.

Owns the judgement by disk: programs, models, what is compiled and the logs may each lie on one of
their own. `blockers` is pure; `look` measures and changes nothing. Refuses to reckon with what
could be removed first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import Blocker


@dataclass(frozen=True, slots=True)
class Share:
    """`size` bytes below `directory`, which need not exist yet; `holds` says for what."""

    directory: Path
    holds: str
    size: int


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system: where it is mounted, and how many bytes are free."""

    mount: Path
    free: int


def look(directories: Iterable[Path]) -> dict[Path, Disk]:
    """The disk that each of `directories` is on, or would be made on."""
    found: dict[int, Disk] = {}
    disks = {}
    for directory in directories:
        place = nearest(directory)
        device = place.stat().st_dev
        if device not in found:
            found[device] = Disk(_mount(place, device), shutil.disk_usage(place).free)
        disks[directory] = found[device]
    return disks


def blockers(disks: Mapping[Path, Disk], shares: Iterable[Share]) -> Iterator[Blocker]:
    """One for each disk that is too full for all its shares together."""
    wanted: dict[Disk, list[Share]] = {}
    for share in shares:
        if share.size:
            wanted.setdefault(disks[share.directory], []).append(share)
    for disk, on_it in wanted.items():
        needed = sum(share.size for share in on_it)
        if disk.free < needed:
            yield Blocker(
                "disk",
                f"the disk at {disk.mount} has {size(disk.free)} free, {size(needed)} are needed "
                f"for {', '.join(share.holds for share in on_it)}",
                f"free {size(needed - disk.free)} on it, or use a larger disk",
            )


def nearest(path: Path) -> Path:
    """`path`, or the closest parent that exists."""
    while not path.is_dir():
        path = path.parent
    return path


def size(count: int) -> str:
    """`count` bytes for a person to read."""
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.0f} MiB"


def _mount(place: Path, device: int) -> Path:
    place = place.resolve()
    while place != place.parent and place.parent.stat().st_dev == device:
        place = place.parent
    return place
