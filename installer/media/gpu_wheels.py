"""What GPU nodes run besides: gathered on the packager's machine for `--target cuda13`.

Owns the composition: what `cuda13.txt` locks (a processor's node and another runtime), and
TensorRT's libraries if the packager has put them into the directory of wheels. Those come from
NVIDIA, whose licence the packager accepts, and no lock of ours can name their hashes: the
packager's signature vouches for exactly the files that were given, as for every other file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from installer.media.lockfile import Pin, parse_lock, write_lock
from installer.media.target import CUDA13, TargetPrograms, TargetWheel
from installer.media.wheelhouse import Locks, Wheel, Wheelhouse

TENSORRT_VERSION = "10.16.1.11"
"""onnxruntime-gpu 1.31 links libnvinfer.so.10; its parser knows TensorScatter since 10.15."""
TENSORRT = dict.fromkeys(
    ("tensorrt-cu13", "tensorrt-cu13-bindings", "tensorrt-cu13-libs"), TENSORRT_VERSION
)
"""Only the libraries are needed; the others are carried if they are there."""


@dataclass(frozen=True, slots=True)
class GpuWheels:
    """The wheels that only GPU nodes install; `given` are those that no lock names."""

    locked: tuple[Wheel, ...]
    given: tuple[Wheel, ...]

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """All of them."""
        return (*self.locked, *self.given)

    def programs(self) -> TargetPrograms:
        """The document that lists them on media."""
        wheels = sorted(map(_target_wheel, self.wheels), key=lambda wheel: wheel.path)
        return TargetPrograms(name=CUDA13, wheels=tuple(wheels))

    def lock(self, locks: Locks, own: Pin) -> str:
        """The lock of a GPU node's whole environment; `own` is the appliance's own wheel."""
        given = (Pin(w.project, TENSORRT_VERSION, "", frozenset({w.sha256})) for w in self.given)
        return locks.cuda13 + write_lock([*_by_project(given), own])


def gather(
    cache: Path, locks: Locks, *, pythons: Sequence[str], status: Callable[[str], None]
) -> GpuWheels:
    """The wheels of target cuda13 on `pythons`, fetched into `cache` where they are missing.

    Raises UnavailableError if pip fails, UsageError for TensorRT of another version,
    UnsupportedError for a file that media cannot hold.
    """
    house = Wheelhouse(cache)
    status(f"gathering what {CUDA13} needs")
    locked = house.wheels(write_lock(_extra(locks), markers=True), pythons=pythons, status=status)
    return GpuWheels(locked, house.given(TENSORRT, pythons=pythons))


def target_path(wheel: Wheel) -> str:
    """Where a wheel of the target is on media."""
    return f"{CUDA13}/{wheel.path.name}"


def _extra(locks: Locks) -> list[Pin]:
    """What the lock of the target names beyond that of every node, whose wheels media have."""
    shared = {pin.name for pin in parse_lock(locks.node)}
    return [pin for pin in parse_lock(locks.cuda13) if pin.name not in shared]


def _by_project(pins: Iterable[Pin]) -> Iterable[Pin]:
    """One pin for each project: bindings have a wheel for each interpreter."""
    merged: dict[str, Pin] = {}
    for pin in pins:
        hashes = pin.hashes | (merged[pin.name].hashes if pin.name in merged else frozenset())
        merged[pin.name] = Pin(pin.name, pin.version, pin.marker, hashes)
    return merged.values()


def _target_wheel(wheel: Wheel) -> TargetWheel:
    with zipfile.ZipFile(wheel.path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    return TargetWheel(
        path=target_path(wheel),
        size=wheel.size,
        sha256=wheel.sha256,
        pythons=wheel.pythons,
        unpacked=unpacked,
    )
