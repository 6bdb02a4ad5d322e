"""The libraries that NVIDIA's driver has for programs, as the dynamic linker would find them.

Owns the looking, in files: nothing is loaded. Without these the kernel's half of a driver is of no
use, and one that is newer than what the kernel has loaded refuses to speak to it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

CUDA, MANAGEMENT = "libcuda.so.1", "libnvidia-ml.so.1"
_CACHE = "etc/ld.so.cache"
_PLACES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64")
"""Where ld.so(8) looks besides, on this processor."""


def missing(machine: Path) -> tuple[str, ...]:
    """Those that programs of the machine below `machine` would not find."""
    return tuple(name for name in (CUDA, MANAGEMENT) if _find(machine, name) is None)


def version(machine: Path) -> str:
    """Of the driver that the libraries belong to; empty if that does not show.

    Distributions name the file behind the link by it.
    """
    path = _find(machine, MANAGEMENT)
    name = path.name if path is not None else ""
    found = re.fullmatch(rf"{re.escape(MANAGEMENT.removesuffix('1'))}(\d{{3,}}(?:\.\d+)+)", name)
    return found[1] if found else ""


def _find(machine: Path, name: str) -> Path | None:
    """The file that the linker would load, links followed."""
    for place in (*_cached(machine, name), *_PLACES):
        path = machine / place / name
        if path.exists():
            return Path(os.path.realpath(path))
    return None


def _cached(machine: Path, name: str) -> list[str]:
    """Directories, without the first slash, in which the linker's cache has it."""
    try:
        cache = (machine / _CACHE).read_bytes()
    except OSError:
        return []
    found = re.findall(rb"/([!-~]*)/" + re.escape(name.encode()) + rb"\0", cache)
    return [os.fsdecode(directory) for directory in found]
