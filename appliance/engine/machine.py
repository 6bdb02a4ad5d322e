"""What this machine has: memory and cores that the engine may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")
_TOPOLOGY = Path("/sys/devices/system/cpu")


def memory_bytes() -> int:
    """Physical memory, or the limit of this process's control group if that is less."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_cgroup_limits()])


def physical_cores() -> int:
    """Cores that this process may run on; hyper-threads of one core count once.

    Matrix kernels fill a core's execution units, so a second thread on it only gets in the way.
    """
    allowed = os.sched_getaffinity(0)
    siblings = {
        _read(_TOPOLOGY / f"cpu{cpu}/topology/core_cpus_list") or str(cpu) for cpu in allowed
    }
    return len(siblings)


def _cgroup_limits() -> Iterator[int]:
    """memory.max of the control group and of each group above it (cgroup v2)."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::/"):
            group = PurePosixPath(line[4:])
            for path in (group, *group.parents):
                limit = _read(_CGROUPS / path / "memory.max")
                if limit.isdigit():
                    yield int(limit)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
