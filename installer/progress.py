"""What a long command says while it works.

Owns the forms: bars with rate and time left on a terminal (standard error, so that results
stay alone on standard output), a plain line every ten seconds where there is no terminal, and JSON
lines for machines (standard output, the result being the last line). Refuses to guess: a bar has
a total that was signed or measured.

The JSON lines are `{"event":"step","title":…}` when a step begins, then
`{"event":"progress","title":…,"done":…,"total":…,"bytes_per_second":…,"seconds_left":…}` at
most twice a second (of things that are not bytes the rate is named after them), and
`{"event":"note","text":…}`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichBars

Advance = Callable[[int], None]
_REPORT_SECONDS = 0.5
_LINE_SECONDS = 10.0
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


class Progress(Protocol):
    """Who is told how far the work is."""

    def step(self, title: str) -> None:
        """A step begins."""

    def note(self, text: str) -> None:
        """Something the reader should know."""

    def bytes(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """A step over `total` bytes; call what it gives with each number of bytes done."""

    def count(self, title: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """A step over `total` things, called `unit`; call what it gives with each number done."""


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

    def bytes(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """Show a bar with rate and time left, which ends as one line with the title."""
        columns = (DownloadColumn(), TransferSpeedColumn())
        return self._bar(title, total, columns, "B")

    def count(self, title: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Show a bar with time left, which ends as one line with the title."""
        return self._bar(title, total, (MofNCompleteColumn(), TextColumn(unit)), unit)

    @contextmanager
    def _bar(
        self, title: str, total: int, columns: Sequence[ProgressColumn], unit: str
    ) -> Iterator[Advance]:
        if not self._console.is_terminal:
            self.step(title)
            yield self._lines(_Meter(total, _LINE_SECONDS), unit)
            return
        first = (TextColumn("• {task.description}"), BarColumn())
        with RichBars(
            *(*first, *columns, TimeRemainingColumn()), console=self._console, transient=True
        ) as bars:
            task = bars.add_task(title, total=total)
            yield lambda count: bars.advance(task, count)
        self.step(title)

    def _lines(self, meter: _Meter, unit: str) -> Advance:
        def advance(count: int) -> None:
            if meter.advance(count) and not meter.finished:
                self.note(meter.line(unit))

        return advance


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
        yield self._events(title, total, "bytes_per_second")

    @contextmanager
    def count(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        """Write progress events, the last one when all is done."""
        yield self._events(title, total, f"{unit}_per_second")

    def _events(self, title: str, total: int, rate: str) -> Advance:
        self.step(title)
        meter = _Meter(total, _REPORT_SECONDS)

        def advance(count: int) -> None:
            if meter.advance(count):
                self._write({"event": "progress", "title": title, **meter.figures(rate)})

        return advance

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

    @contextmanager
    def count(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        """Count nothing."""
        yield lambda _count: None


class _Meter:
    """What is done, and when to speak of it: at most every `interval` seconds."""

    def __init__(self, total: int, interval: float) -> None:
        self._total = total
        self._interval = interval
        self._done = 0
        self._begin = self._spoke = time.monotonic()

    def advance(self, count: int) -> bool:
        """Count, and say whether it is time for a report."""
        self._done += count
        now = time.monotonic()
        due = now - self._spoke >= self._interval or self.finished
        if due:
            self._spoke = now
        return due

    @property
    def finished(self) -> bool:
        """Whether all is done."""
        return self._done >= self._total

    def figures(self, rate: str) -> dict[str, object]:
        """The fields of a progress event; `rate` names the one with what is done in a second."""
        left = self._left()
        return {
            "done": self._done,
            "total": self._total,
            rate: round(self._rate()),
            "seconds_left": None if left is None else round(left, 1),
        }

    def line(self, unit: str) -> str:
        """The same for a person."""
        left = self._left()
        ending = "" if left is None else f", {_duration(left)} left"
        if unit != "B":
            return f"{self._done} of {self._total} {unit}{ending}"
        return f"{_size(self._done)} of {_size(self._total)}, {_size(self._rate())}/s{ending}"

    def _rate(self) -> float:
        return self._done / max(self._spoke - self._begin, 1e-6)

    def _left(self) -> float | None:
        """Seconds."""
        rate = self._rate()
        return max(self._total - self._done, 0) / rate if rate else None


def _size(count: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    for unit in _BYTE_UNITS[:-1]:
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_BYTE_UNITS[-1]}"


def _duration(seconds: float) -> str:
    """Whole seconds, minutes or hours and minutes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def progress_for(console: Console, stream: TextIO, *, as_json: bool) -> Progress:
    """The form that `--json` asks for."""
    return JsonProgress(stream) if as_json else TerminalProgress(console)
