"""Progress for a machine is JSON lines; for a person, titles and bars on standard error."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from installer.progress import JsonProgress, TerminalProgress, _duration, progress_for


def test_json_lines_say_step_note_and_progress_to_the_last_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("installer.progress._REPORT_SECONDS", 3600.0)
    stream = io.StringIO()
    progress = JsonProgress(stream)
    progress.step("verifying")
    progress.note("signed today")
    with progress.bytes("copying", 300) as advance:
        for _ in range(3):
            advance(100)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert events[0] == {"event": "step", "title": "verifying"}
    assert events[1] == {"event": "note", "text": "signed today"}
    assert events[2] == {"event": "step", "title": "copying"}
    assert (events[-1]["done"], events[-1]["total"]) == (300, 300)
    assert events[-1]["seconds_left"] == 0
    assert events[-1]["bytes_per_second"] > 0
    assert len(events) == 4, "not one line for each call"


def test_a_person_without_a_terminal_reads_plain_titles() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream))
    progress.step("verifying [the] media")
    with progress.bytes("copying", 100) as advance:
        advance(100)
    assert stream.getvalue() == "• verifying [the] media\n• copying\n"


def test_without_a_terminal_a_long_step_says_now_and_then_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("installer.progress._LINE_SECONDS", 0.0)
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream, width=200))
    with progress.bytes("copying", 4_000_000) as advance:
        advance(1_000_000)
        advance(3_000_000)
    with progress.count("calibrating", 40, "tokens") as advance:
        advance(10)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "• copying"
    assert re.fullmatch(r"  1\.0 MB of 4\.0 MB, .*/s, \d+ s left", lines[1])
    assert lines[2] == "• calibrating", "and nothing when all is done"
    assert re.fullmatch(r"  10 of 40 tokens, \d+ s left", lines[3])


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89.4, "89 s"), (95, "2 min"), (7300, "2 h 2 min")]
)
def test_time_left_has_the_unit_that_a_person_would_use(seconds: float, said: str) -> None:
    assert _duration(seconds) == said


def test_a_terminal_shows_rate_and_time_left() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream, force_terminal=True, width=100))
    with progress.bytes("copying", 4096) as advance:
        advance(2048)
    assert "2.0/4.1 kB" in stream.getvalue()
    assert stream.getvalue().endswith("copying\n")


def test_the_flag_chooses_the_form() -> None:
    console = Console(file=io.StringIO())
    assert isinstance(progress_for(console, io.StringIO(), as_json=True), JsonProgress)
    assert isinstance(progress_for(console, io.StringIO(), as_json=False), TerminalProgress)
