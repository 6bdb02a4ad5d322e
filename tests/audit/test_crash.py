"""Killed or failing at any moment, the log keeps what it acknowledged and goes on."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from appliance.config import AuditSettings
from appliance.fsops import exclusive_lock
from tests.audit.ledger import Ledger
from tests.audit.sample import assert_verifies, check, open_log
from tests.conftest import FULL_VARIABLE, REPOSITORY
from tests.sweeps import rarely

APPENDER = [sys.executable, "-m", "tests.audit.appender"]
KILLS = 8
FAST_KILL_POINTS = 12
ERRORS = ("EIO", "ENOSPC")
WRITING_CALLS = "pwrite64,fsync,fdatasync,ftruncate,rename,unlink,rmdir,mkdir"


def traced(tmp_path: Path, *options: str) -> list[str]:
    """The start of a command line that runs what follows under strace.

    A filter in the kernel leaves calls alone that are not traced; strace 6.1 sends no signal then.
    """
    strace = shutil.which("strace")
    kills = any("signal=" in option for option in options)
    options = options if kills else ("--seccomp-bpf", *options)
    command = [str(strace), "-f", "-qq", "-o", str(tmp_path / "trace"), *options]
    if strace is None or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("tracing with strace is not permitted here")
    return command


def run(command: list[str], ledger: Ledger, *, limit: float = 300) -> int:
    done = subprocess.run(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, timeout=limit, check=False
    )
    ledger.take(done.stdout)
    return done.returncode


def until_acknowledged(output: IO[bytes], count: int) -> bytes:
    """What a process says until it has opened the log and `count` records are acknowledged."""
    told = [output.readline()]
    while told[-1] and sum(line.startswith(b"acked ") for line in told) < count:
        told.append(output.readline())
    return b"".join(told)


def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    ledger = Ledger()
    rng = random.Random(7)
    for i in range(KILLS):
        with subprocess.Popen(
            [*APPENDER, str(tmp_path), f"run{i}", "1000000"], cwd=REPOSITORY, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            told = until_acknowledged(process.stdout, 5 * i)
            time.sleep(rng.uniform(0.0, 0.4))
            process.kill()
            ledger.take(told + process.stdout.read())
        assert check(tmp_path).findings == [], "a crash alone is never reported as tampering"
        ledger.assert_kept_by(tmp_path / "audit")
    with open_log(tmp_path) as log:
        log.recover()
    assert assert_verifies(tmp_path).open_requests == 0
    assert len(ledger.acked) > 100


def kill_points(tmp_path: Path) -> list[tuple[str, int]]:
    """(system call, n) for each n-th writing call of a thread of one short run; strace counts
    per thread and call."""
    command = traced(tmp_path, "-e", f"trace={WRITING_CALLS}")
    counted = [str(tmp_path / "counted"), "count", "16", "rolling"]
    assert run([*command, *APPENDER, *counted], Ledger()) == 0
    trace = (tmp_path / "trace").read_text()
    made = Counter(re.findall(r"^(\d+) +(\w+)\(", trace, re.MULTILINE))
    most: dict[str, int] = {}
    for (_, call), count in made.items():
        most[call] = max(most.get(call, 0), count)
    return [(call, n) for call, count in sorted(most.items()) for n in range(1, count + 1)]


def test_killed_at_a_system_call_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """At some of the calls here, at all of them with scripts/test --full."""
    points = kill_points(tmp_path)
    for point in points[3 :: len(points) // FAST_KILL_POINTS]:
        kill_at(tmp_path, *point)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_every_system_call_nothing_acknowledged_is_lost(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    points = kill_points(tmp_path)
    for point in points:
        kill_at(tmp_path, *point)
    record_property("measured", f"audit append: killed at each of {len(points)} writing calls")


def kill_at(tmp_path: Path, call: str, nth: int) -> None:
    inject = f"inject={call}:signal=SIGKILL:when={nth}"
    command = traced(tmp_path, "-e", f"trace={call}", "-e", inject)
    ledger = Ledger()
    base = tmp_path / f"{call}-{nth}"
    base.mkdir()
    status = run([*command, *APPENDER, str(base), "first", "16", "rolling"], ledger)
    assert status in {0, -signal.SIGKILL, 128 + signal.SIGKILL}
    if (base / "audit/checkpoint").exists():
        assert check(base).findings == [], f"killed at {call} number {nth}"
    assert run([*APPENDER, str(base), "second", "16", "rolling"], ledger) == 0
    ledger.assert_kept_by(base / "audit")
    assert_verifies(base)
    shutil.rmtree(base)


def test_a_call_that_fails_once_loses_nothing(tmp_path: Path) -> None:
    """Some of the calls here, every one of them with scripts/test --full."""
    points = kill_points(tmp_path)
    chosen = points[5 :: len(points) // 4]
    met = [fail_at(tmp_path, *p, error=ERRORS[i % 2]) for i, p in enumerate(chosen)]
    assert any(met)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_call_that_fails_once_loses_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    points = kill_points(tmp_path)
    made = [fail_at(tmp_path, *point, error=error) for point in points for error in ERRORS]
    assert sum(made) > len(points)
    record_property(
        "measured",
        f"{len(points)} writing calls of the audit log, each failing once with each of "
        f"{' and '.join(ERRORS)}: {sum(made)} failures met, nothing lost",
    )


def fail_at(tmp_path: Path, call: str, nth: int, *, error: str) -> bool:
    """Whether a thread came to its nth such call, which failed: how records gather in batches is
    not the same at each run. An opening may fail and say so; then on the log resumes by itself."""
    inject = f"inject={call}:error={error}:when={nth}"
    command = traced(tmp_path, "-e", f"trace={call}", "-e", inject)
    ledger = Ledger()
    base = tmp_path / f"{call}-{nth}-{error}"
    base.mkdir()
    run([*command, *APPENDER, str(base), "first", "16", "rolling"], ledger)
    met = "INJECTED" in (tmp_path / "trace").read_text()
    assert len(ledger.acked) in {0, 16}, f"{call} number {nth} failed with {error}"
    if (base / "audit/checkpoint").exists():
        assert check(base).findings == [], f"{call} number {nth} failed with {error}"
    assert run([*APPENDER, str(base), "second", "16", "rolling"], ledger) == 0
    ledger.assert_kept_by(base / "audit")
    assert_verifies(base)
    shutil.rmtree(base)
    return met


@pytest.mark.parametrize(
    ("error", "when"),
    [("EIO", 1), ("EIO", 3), ("EIO", 6), ("ENOSPC", 3), *rarely([("ENOSPC", 1), ("ENOSPC", 6)])],
)
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64", "fsync", "rename"])
def test_a_failing_call_acknowledges_nothing_and_recording_resumes(
    tmp_path: Path, call: str, error: str, when: int
) -> None:
    """Not before the log is open: an opening that fails is an error of its own."""
    with open_log(tmp_path):
        pass
    first = {"fdatasync": 0, "pwrite64": 3, "fsync": 2, "rename": 0}[call]
    inject = f"inject={call}:error={error}:when={first + when}"
    command = traced(tmp_path, "-e", f"trace={call}", "-e", inject)
    ledger = Ledger()
    assert run([*command, *APPENDER, str(tmp_path), "run", "800"], ledger) == 0
    assert "INJECTED" in (tmp_path / "trace").read_text()
    ledger.assert_kept_by(tmp_path / "audit")
    assert len(ledger.acked) == 800
    assert_verifies(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "rename", "pwrite64"])
def test_a_segment_that_cannot_be_begun_is_begun_later(tmp_path: Path, call: str) -> None:
    """Each call in turn fails once, those that begin a segment or publish included: every other
    one here, all of them with scripts/test --full."""
    settings = AuditSettings(segment_bytes=65_536)
    base = tmp_path / "log"
    for nth in range(3, 3 + FAST_KILL_POINTS, 1 if os.environ.get(FULL_VARIABLE) else 2):
        with open_log(base, settings):
            pass
        inject = f"inject={call}:error=EIO:when={nth}"
        command = traced(tmp_path, "-e", f"trace={call}", "-e", inject)
        ledger = Ledger()
        assert run([*command, *APPENDER, str(base), "run", "600", "threadless"], ledger) == 0
        assert check(base).findings == [], f"{call} number {nth}"
        ledger.assert_kept_by(base / "audit")
        with open_log(base, settings) as log:
            log.checkpoint()
        assert assert_verifies(base).size == len(ledger.acked), f"{call} number {nth}"
        shutil.rmtree(base)


@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
def test_calls_that_fail_again_and_again_keep_the_log_closed_until_they_work(
    tmp_path: Path, call: str
) -> None:
    with open_log(tmp_path):
        pass
    inject = f"inject={call}:error=EIO:when=20..22"
    command = traced(tmp_path, "-e", f"trace={call}", "-e", inject)
    ledger = Ledger()
    assert run([*command, *APPENDER, str(tmp_path), "run", "400"], ledger) == 0
    ledger.assert_kept_by(tmp_path / "audit")
    assert ledger.refused
    assert_verifies(tmp_path)


@pytest.mark.parametrize("rolling", [[], ["rolling"]], ids=["one key", "many keys"])
def test_three_processes_append_to_one_log(tmp_path: Path, rolling: list[str]) -> None:
    with open_log(tmp_path):
        pass
    ledger = Ledger()
    processes = [
        subprocess.Popen(
            [*APPENDER, str(tmp_path), name, "400", *rolling],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
        )
        for name in ("one", "two", "three")
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        ledger.take(output)
    ledger.assert_kept_by(tmp_path / "audit")
    assert len(ledger.acked) == 1200
    assert len(set(ledger.acked.values())) == 1200
    report = assert_verifies(tmp_path)
    assert report.records["REQ"] == 1200
    assert bool(report.epoch) == bool(rolling)


def test_one_of_two_processes_is_killed_and_the_other_goes_on(tmp_path: Path) -> None:
    with open_log(tmp_path):
        pass
    ledger = Ledger()
    command = [*APPENDER, str(tmp_path)]
    with subprocess.Popen(
        [*command, "victim", "1000000"], cwd=REPOSITORY, stdout=subprocess.PIPE
    ) as victim:
        assert victim.stdout is not None
        opened = victim.stdout.readline()
        with subprocess.Popen(
            [*command, "survivor", "800"], cwd=REPOSITORY, stdout=subprocess.PIPE
        ) as survivor:
            assert survivor.stdout is not None
            first = survivor.stdout.readline()
            time.sleep(0.2)
            victim.kill()
            ledger.take(opened + victim.stdout.read())
            ledger.take(first + survivor.stdout.read())
        assert survivor.returncode == 0
    ledger.assert_kept_by(tmp_path / "audit")
    assert_verifies(tmp_path)


def test_a_copy_taken_under_the_publisher_s_lock_verifies(tmp_path: Path) -> None:
    """As docs/auditor.md tells the auditor to take it, from a log in use."""
    with open_log(tmp_path):
        pass
    command = [*APPENDER, str(tmp_path), "busy", "1000000"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = process.stdout
        ledger = Ledger()
        reader = threading.Thread(target=lambda: ledger.take(output.read()))
        reader.start()
        for i in range(4):
            time.sleep(0.2)
            copy = tmp_path / f"copy-{i}"
            with exclusive_lock(tmp_path / "audit/publish.lock", wait=True):
                shutil.copytree(tmp_path / "audit", copy / "audit")
            shutil.copytree(tmp_path / "key", copy / "key")
            assert check(copy).findings == []
        process.kill()
        reader.join()
    ledger.assert_kept_by(tmp_path / "audit")


def test_a_log_verifies_at_any_moment_while_another_process_writes(tmp_path: Path) -> None:
    with open_log(tmp_path):
        pass
    with (
        (tmp_path / "output").open("wb") as output,
        subprocess.Popen(
            [*APPENDER, str(tmp_path), "busy", "1600"], cwd=REPOSITORY, stdout=output
        ) as process,
    ):
        while process.poll() is None:
            assert check(tmp_path).findings == []
            kept = (tmp_path / "audit/checkpoint").read_bytes()
            assert check(tmp_path, since=kept).findings == []
    ledger = Ledger()
    ledger.take((tmp_path / "output").read_bytes())
    ledger.assert_kept_by(tmp_path / "audit")
    assert assert_verifies(tmp_path).size == 1600
