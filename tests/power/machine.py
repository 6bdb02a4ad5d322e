"""A file system on a recorded disk, and one on what a power cut left of it. Root only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.shim.node import PATIENCE, eventually

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileSystem:
    """What a disk is formatted with: `mkfs.name` with `make`, mounted with `options`.

    `atomic` is the size in bytes of a write that it takes for granted to be there whole or not at
    all: a sector, for btrfs its superblock.
    """

    name: str
    disk_bytes: int
    make: tuple[str, ...] = ()
    options: str = "defaults"
    atomic: int = 512


EXT4 = FileSystem("ext4", 64 * MIB, ("-m", "0"))
EXT4_WRITEBACK = FileSystem("ext4", 64 * MIB, ("-m", "0"), "data=writeback")
XFS = FileSystem("xfs", 64 * MIB)
BTRFS = FileSystem("btrfs", 128 * MIB, atomic=4096)
_SMALL_XFS = {"TEST_DIR": "-", "TEST_DEV": "-", "QA_CHECK_FS": "-"}
"""How the tests of XFS itself tell mkfs.xfs that they mean a disk of less than 300 MB."""


def require(system: FileSystem) -> None:
    """Skip where no disk can be made."""
    tools = all(shutil.which(name) for name in (f"mkfs.{system.name}", "losetup", "mount"))
    if os.geteuid() or not tools or not Path("/dev/fuse").exists():
        pytest.skip(
            f"a disk of one's own needs root, /dev/fuse, loop devices and mkfs.{system.name}"
        )


@contextmanager
def recorded(base: Path, mounted: Path, system: FileSystem) -> Iterator[None]:
    """A file system at `mounted` on a disk whose orders are noted in `base`/journal."""
    image, node = base / "image", base / "node"
    image.touch()
    os.truncate(image, system.disk_bytes)
    format_disk = [f"mkfs.{system.name}", "-q", *system.make, str(image)]
    subprocess.run(format_disk, check=True, env={**os.environ, **_SMALL_XFS})
    node.touch()
    command = [sys.executable, "-m", "tests.power.disk", str(image), str(node)]
    with subprocess.Popen([*command, str(base / "journal")], cwd=REPOSITORY) as disk:
        try:
            eventually(lambda: disk.poll() is not None or node.stat().st_size > 0)
            with looped(node, mounted, system):
                yield
        finally:
            subprocess.run(["umount", str(node)], check=False)
            disk.wait(PATIENCE)


@contextmanager
def started_again(
    image: bytearray, file: Path, mounted: Path, system: FileSystem
) -> Iterator[None]:
    """The file system of `image` at `mounted`, its own journal replayed."""
    file.write_bytes(image)
    with looped(file, mounted, system):
        yield


@contextmanager
def looped(file: Path, mounted: Path, system: FileSystem) -> Iterator[None]:
    """The file system in `file` at `mounted`."""
    mounted.mkdir(exist_ok=True)
    done = subprocess.run(
        ["losetup", "-f", "--show", str(file)], check=True, capture_output=True, text=True
    )
    device = done.stdout.strip()
    try:
        _run("mount", "-t", system.name, "-o", system.options, device, str(mounted))
        try:
            yield
        finally:
            _run("umount", str(mounted))
    finally:
        _run("losetup", "-d", device)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
