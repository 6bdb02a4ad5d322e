"""Disks with little room: one that says so, and for root one that is so."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def leave_room(patch: pytest.MonkeyPatch, free: int) -> None:
    """Whatever disk is asked has `free` bytes left, in blocks of 1000."""
    real = os.statvfs

    def told(path: Path) -> os.statvfs_result:
        found = list(real(path))
        found[1], found[4] = 1000, free // 1000  # f_frsize, f_bavail
        return os.statvfs_result(found)

    patch.setattr(os, "statvfs", told)


def make_read_only(place: Path) -> None:
    """Of what `small_disk` mounted at `place`."""
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """Mount an empty file system of `size` bytes at the new directory `place`; for root alone."""
    place.mkdir()
    options = ("-t", "tmpfs", "-o", f"size={size}", "none", str(place))
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine mounts nothing: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)
