"""Room on the disks that the endpoint writes to, for /metrics.

Owns two gauges. Refuses to speak of the models' disk: the endpoint cannot see it, and
`appliance status` can.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.config import Layout


def written_to(layout: Layout) -> dict[str, Path]:
    """What the endpoint writes -> where it lies."""
    return {"audit": layout.audit, "usage": layout.metering, "files": layout.responses}


class DiskCollector(Collector):
    """What is free where `directories` lie, as an ordinary user sees it; asked at each scrape."""

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self._directories = directories

    def collect(self) -> Iterable[Metric]:
        """Both families. A directory that is not there is left out."""
        free = GaugeMetricFamily(
            "appliance_disk_free_bytes", "Free on the disk, by what lies there.", labels=("holds",)
        )
        size = GaugeMetricFamily(
            "appliance_disk_size_bytes", "Size of the disk, by what lies there.", labels=("holds",)
        )
        for holds, directory in self._directories.items():
            try:
                found = shutil.disk_usage(directory)
            except OSError:
                continue
            free.add_metric((holds,), found.free)
            size.add_metric((holds,), found.used + found.free)
        yield free
        yield size
