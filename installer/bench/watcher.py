"""Who is told how far a run is.

Owns what is said while it works, on standard error; the result is not its matter.
"""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from installer.bench.recorder import Recorder
from installer.bench.workload import Level


class Watcher(Protocol):
    """Who is told how far the run is."""

    def step(self, title: str) -> None:
        """Something else than a level begins."""

    def begin(self, level: Level, requests: int) -> None:
        """A level begins."""

    def finished(self, recorder: Recorder) -> None:
        """A request of the level has ended."""


class Unwatched:
    """For nobody."""

    def step(self, title: str) -> None:
        """Say nothing."""

    def begin(self, level: Level, requests: int) -> None:
        """Say nothing."""

    def finished(self, recorder: Recorder) -> None:
        """Say nothing."""


class TerminalWatcher:
    """For a person: a bar on a terminal, else a line a level."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.measuring = False
        """A level has begun, so there will be something to report."""
        self._failed = self._tokens = 0
        self._begin = 0.0
        self._bars = Progress(
            TextColumn("• {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("", visible=False, said="")

    def __enter__(self) -> TerminalWatcher:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def step(self, title: str) -> None:
        """Print the title of a step."""
        self._console.print(f"• {title}", markup=False)

    def begin(self, level: Level, requests: int) -> None:
        """Start the bar of a level."""
        self.measuring = True
        self._failed = self._tokens = 0
        self._begin = time.monotonic()
        title = f"load {level.label}"
        self.step(f"{title}: {requests} requests")
        self._bars.reset(self._task, total=requests, description=title, visible=True)

    def finished(self, recorder: Recorder) -> None:
        """Advance the bar, with the rate so far."""
        self._failed += bool(recorder.sample.error)
        self._tokens += recorder.sample.completion_tokens or 0
        rate = self._tokens / max(time.monotonic() - self._begin, 1e-6)
        failed = f", {self._failed} failed" if self._failed else ""
        self._bars.update(self._task, advance=1, said=f"{rate:.0f} tokens/s{failed}")
