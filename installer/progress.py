"""What a long command says while it works.

Owns the two forms: bars with rate and time left on a terminal (standard error, so that results
stay alone on standard output), and JSON lines for machines (standard output, the result being
the last line). Refuses to guess: a bar has a total that was signed or measured.

The JSON lines are `{"event":"step","title":…}` when a step begins, then
`{"event":"progress","title":…,"done":…,"total":…,"bytes_per_second":…,"seconds_left":…}` at
most twice a second, and `{"event":"note","text":…}`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichBars

Advance = Callable[[int], None]
_REPORT_SECONDS = 0.5


class Progress(Protocol):
    """Who is told how far the work is."""

    def step(self, title: str) -> None:
        """A step begins."""

    def note(self, text: str) -> None:
        """Something the reader should know."""

    def bytes(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """A step over `total` bytes; call what it gives with each number of bytes done."""


class TerminalProgress:
    """For a person."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def step(self, title: str) -> None:
        """Print the title of a step."""
        self._console.print(f"• {title}", markup=False)

    def note(self, text: str) -> None:
        """Print a remark."""
        self._console.print(f"  {text}", markup=False)

    @contextmanager
    def bytes(self, title: str, total: int) -> Iterator[Advance]:
        """Show a bar with rate and time left, which ends as one line with the title."""
        columns = (
            TextColumn("• {task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        if not self._console.is_terminal:
            self.step(title)
            yield lambda _count: None
            return
        with RichBars(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(title, total=total)
            yield lambda count: bars.advance(task, count)
        self.step(title)


class JsonProgress:
    """For a machine."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def step(self, title: str) -> None:
        """Write a step event."""
        self._write({"event": "step", "title": title})

    def note(self, text: str) -> None:
        """Write a note event."""
        self._write({"event": "note", "text": text})

    @contextmanager
    def bytes(self, title: str, total: int) -> Iterator[Advance]:
        """Write progress events, the last one when all is done."""
        self.step(title)
        meter = _Meter(total)

        def advance(count: int) -> None:
            if meter.advance(count):
                self._write({"event": "progress", "title": title, **meter.figures()})

        yield advance

    def _write(self, event: dict[str, object]) -> None:
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


class NoProgress:
    """For nobody: a command whose `--json` is one document, and nothing besides."""

    def step(self, title: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    @contextmanager
    def bytes(self, title: str, total: int) -> Iterator[Advance]:
        """Count nothing."""
        yield lambda _count: None


class _Meter:
    """Bytes done, and when to speak of them."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._begin = self._spoke = time.monotonic()

    def advance(self, count: int) -> bool:
        """Count, and say whether it is time for a report."""
        self._done += count
        now = time.monotonic()
        due = now - self._spoke >= _REPORT_SECONDS or self._done >= self._total
        if due:
            self._spoke = now
        return due

    def figures(self) -> dict[str, object]:
        """The fields of a progress event."""
        rate = self._done / max(self._spoke - self._begin, 1e-6)
        left = max(self._total - self._done, 0)
        return {
            "done": self._done,
            "total": self._total,
            "bytes_per_second": round(rate),
            "seconds_left": round(left / rate, 1) if rate else None,
        }


def progress_for(console: Console, stream: TextIO, *, as_json: bool) -> Progress:
    """The form that `--json` asks for."""
    return JsonProgress(stream) if as_json else TerminalProgress(console)
