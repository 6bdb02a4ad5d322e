"""A file system on a recorded disk, and one on what a power cut left of it. Root only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.shim.node import eventually

DISK_BYTES = 64 * 1024 * 1024


def require() -> None:
    """Skip where no disk can be made."""
    tools = all(shutil.which(name) for name in ("mkfs.ext4", "losetup", "mount"))
    if os.geteuid() or not tools or not Path("/dev/fuse").exists():
        pytest.skip("a disk of one's own needs root, /dev/fuse and loop devices")


@contextmanager
def recorded(base: Path, mounted: Path) -> Iterator[None]:
    """An ext4 at `mounted` on a disk whose orders are noted in `base`/journal."""
    image, node = base / "image", base / "node"
    image.touch()
    os.truncate(image, DISK_BYTES)
    _run("mkfs.ext4", "-q", "-m", "0", str(image))
    node.touch()
    command = [sys.executable, "-m", "tests.power.disk", str(image), str(node)]
    with subprocess.Popen([*command, str(base / "journal")], cwd=REPOSITORY) as disk:
        try:
            eventually(lambda: disk.poll() is not None or node.stat().st_size == DISK_BYTES, 20)
            with looped(node, mounted):
                yield
        finally:
            subprocess.run(["umount", str(node)], check=False)
            disk.wait(20)


@contextmanager
def started_again(image: bytearray, file: Path, mounted: Path) -> Iterator[None]:
    """The file system of `image` at `mounted`, its own journal replayed."""
    file.write_bytes(image)
    with looped(file, mounted):
        yield


@contextmanager
def looped(file: Path, mounted: Path) -> Iterator[None]:
    """The file system in `file` at `mounted`."""
    mounted.mkdir(exist_ok=True)
    done = subprocess.run(
        ["losetup", "-f", "--show", str(file)], check=True, capture_output=True, text=True
    )
    device = done.stdout.strip()
    try:
        _run("mount", "-t", "ext4", device, str(mounted))
        try:
            yield
        finally:
            _run("umount", str(mounted))
    finally:
        _run("losetup", "-d", device)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
