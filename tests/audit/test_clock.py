"""A clock that was set is told, and accuses nobody."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from appliance.audit.event import Event, Heartbeat, timestamp
from appliance.audit.fsck import Report
from appliance.audit.fsck.clock import ClockCheck
from tests.audit.sample import assert_verifies, open_log
from tests.fakes.command import run_command

HOUR = 3600


def beat(hours: float, *, clock: float = 0, boot: str = "a") -> Event:
    """A record so many hours after the start, by a clock that is set so many hours ahead."""
    utc = timestamp(datetime.fromtimestamp((1000 + hours + clock) * HOUR, UTC))
    event = Heartbeat(t_utc=utc, t_mono_ns=round(hours * HOUR * 1e9))
    return msgspec.structs.replace(event, boot_id=boot)


def told(*records: Event) -> tuple[int, int, int]:
    report = Report()
    clock = ClockCheck(report)
    for seq, record in enumerate(records):
        clock.check(seq, record)
    assert report.ok
    return report.clock_set, report.clock_step, report.clock_record


def test_hours_without_a_record_are_no_step() -> None:
    assert told(beat(0), beat(1), beat(9)) == (0, 0, 0)


def test_a_clock_that_was_set_back_is_told_with_the_longest_step() -> None:
    records = beat(0), beat(1, clock=-3), beat(2, clock=-3), beat(3, clock=-1)
    assert told(*records) == (2, -3 * HOUR, 1)


def test_after_a_boot_only_a_clock_behind_the_last_record_is_told() -> None:
    assert told(beat(9), beat(0, clock=10, boot="b")) == (0, 0, 0)
    assert told(beat(9), beat(0, clock=8, boot="b")) == (1, -HOUR, 1)


def test_corrections_by_seconds_are_not_worth_a_word() -> None:
    assert told(beat(0), beat(1, clock=0.01), beat(2)) == (0, 0, 0)


def test_verify_prints_it(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([beat(0), beat(1, clock=-3)])
        log.checkpoint()
    assert assert_verifies(tmp_path).clock_set == 1
    done = run_command("audit", "verify", "--dir", str(tmp_path / "audit"))
    assert done.returncode == 0
    assert "1 time, most -3:00:00 before record 1" in done.stdout
