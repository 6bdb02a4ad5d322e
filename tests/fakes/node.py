"""A node whose daemons start in no time, or refuse to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from appliance.config import Layout
from appliance.errors import UnavailableError
from installer.node import PrefixNode
from installer.progress import Progress
from installer.staging import InstalledRelease, current_release


class FakeNode(PrefixNode):
    """A prefix without processes; `broken` names the releases that do not start."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.broken: set[InstalledRelease] = set()
        self.runs: InstalledRelease | None = None
        self.engine_restarts = 0

    def is_running(self) -> bool:
        """Whether a release was started."""
        return self.runs is not None

    def restart_engine(self, progress: Progress) -> None:
        """Count."""
        self.engine_restarts += 1

    @contextmanager
    def running(self, progress: Progress) -> Iterator[None]:
        """Start what is current."""
        release = current_release(self.layout)
        if release in self.broken:
            raise UnavailableError(f"{release} does not start")
        self.runs = release
        yield
