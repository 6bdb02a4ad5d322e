"""Room on the disks that the endpoint writes to and that its programs are on, for /metrics.

Owns four gauges: of bytes, and of inodes, without which there is no room for another file. Refuses
to speak of the models' disk: the endpoint cannot see it, and `appliance status` can.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.config import Layout


def disks_seen(layout: Layout) -> dict[str, Path]:
    """What lies where the endpoint can see it -> the directory."""
    return {
        "audit": layout.audit,
        "usage": layout.metering,
        "files": layout.responses,
        "programs": layout.releases,
    }


class DiskCollector(Collector):
    """What is free where `directories` lie, as an ordinary user sees it; asked at each scrape."""

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self._directories = directories

    def collect(self) -> Iterable[Metric]:
        """All families. A directory that is not there is left out, and what has no inodes."""
        free, size = _gauge("free_bytes", "Free on"), _gauge("size_bytes", "Size of")
        free_inodes = _gauge("free_inodes", "Inodes (files) that can still be made on")
        inodes = _gauge("inodes", "Inodes (files) of")
        for holds, directory in self._directories.items():
            try:
                found = os.statvfs(directory)
            except OSError:
                continue
            used = found.f_blocks - found.f_bfree
            free.add_metric((holds,), found.f_bavail * found.f_frsize)
            size.add_metric((holds,), (used + found.f_bavail) * found.f_frsize)
            if found.f_files:  # some file systems make them as they need them
                free_inodes.add_metric((holds,), found.f_favail)
                inodes.add_metric((holds,), found.f_files)
        return (free, size, free_inodes, inodes)


def _gauge(name: str, what: str) -> GaugeMetricFamily:
    text = f"{what} the disk, by what lies there."
    return GaugeMetricFamily(f"appliance_disk_{name}", text, labels=("holds",))
