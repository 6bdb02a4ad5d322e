"""A USB stick: an ext4 image in a file, mounted read-only through a loop device."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.node.machine import mounted

_SPARE_BYTES = 64 * 1024 * 1024


@contextmanager
def stick(media: Path, work: Path) -> Iterator[Path]:
    """Where a stick that holds `media` is mounted."""
    image, target = work / "stick.img", work / "stick"
    target.mkdir()
    size = sum(path.stat().st_size for path in media.rglob("*")) + _SPARE_BYTES
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", media, image], check=True)
    try:
        with mounted(["-o", "loop,ro,nosuid,nodev,noexec", str(image), str(target)], target):
            yield target
    except subprocess.CalledProcessError as error:
        if error.cmd[0] != "mount":
            raise
        pytest.skip("this machine cannot mount a loop device")
