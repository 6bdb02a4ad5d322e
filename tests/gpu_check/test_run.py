"""A run ends in time, says what it did not measure, and leaves its figures in any case."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bench_peers.work import PeerError
from gpu_check.__main__ import main
from gpu_check.budget import Budget, OutOfTimeError
from gpu_check.page import runs_in
from gpu_check.results import Run
from gpu_check.worker import Worker
from gpu_check.workloads import FIRST, Workload, question


def check(release: Path, *arguments: str) -> Run:
    """The figures of a small run, whose peer cannot start."""
    out = release.parent / "out"
    main(
        [
            *("--tiny", "--release", str(release), "--work", str(release.parent / "work")),
            *("--out", str(out), "--peer-python", "/bin/false", "--wanted", "2", *arguments),
        ]
    )
    (run,) = runs_in(out)
    return run


def test_a_run_measures_all_that_was_planned_and_says_why_there_is_no_peer(release: Path) -> None:
    run = check(release, "--streams", "8", "--rounds", "1")
    (shape,) = run.shapes
    assert run.missing == {}
    assert run.device == "processor"
    assert shape.workloads == [Workload(1, 256, 2), Workload(8, 256, 2)]
    assert shape.median("ours", FIRST) is not None
    assert shape.median("peer", FIRST) is None
    assert "ended with status 1" in shape.refusal
    assert shape.kinds.keys() == {"pinned", "default"}
    assert shape.loads_beside > 0
    assert not (release.parent / "work/tiny").exists()


def test_an_engine_that_dies_costs_one_workload(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[Workload] = []

    def run(worker: Worker, workload: Workload, seed: int, limit: float | None = None) -> float:
        if workload.streams == 1 and not died:
            died.append(workload)
            worker.kill()
            raise PeerError("it ended with status -9")
        return float(worker.ask(question(workload, seed), limit)["seconds"])

    monkeypatch.setattr(Worker, "run", run)
    run_made = check(release, "--streams", "8", "--rounds", "1")
    assert run_made.missing == {"tiny: 1 x 2 out": "it ended with status -9"}
    assert run_made.shapes[0].workloads == [Workload(8, 256, 2)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see `_AGAIN`
def test_a_run_whose_time_is_over_names_what_is_missing(release: Path) -> None:
    run = check(release, "--minutes", "0.01")
    assert "tiny: 1 x 2 out" in run.missing
    assert set(run.missing.values()) == {"the time was over before it"}
    assert not (release.parent / "work/tiny").exists()


def test_a_release_without_an_interpreter_is_the_reason_for_all_that_is_missing(
    release: Path,
) -> None:
    (release / "venv").unlink()
    run = check(release)
    assert len(run.missing) == 8
    assert all("cannot be started" in reason for reason in run.missing.values())


def wait_for_the_end() -> None:
    time.sleep(30)
    pytest.fail("nothing ended it")


def test_the_time_ends_whatever_waits() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(OutOfTimeError), Budget(0.002).running():
        wait_for_the_end()
    assert signal.getsignal(signal.SIGALRM) is before


def swallow_and_wait() -> None:
    """As an object does that is being finalized: what is raised meanwhile is lost."""
    with suppress(OutOfTimeError):
        time.sleep(30)
    wait_for_the_end()


def test_the_time_ends_also_if_that_is_not_heard_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not sooner: a third alarm would ring while the second is on its way out.
    monkeypatch.setattr("gpu_check.budget._AGAIN", 2.0)
    with pytest.raises(OutOfTimeError), Budget(0.002).running():
        swallow_and_wait()


def test_an_alarm_that_rings_when_all_is_done_ends_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, set_timer = signal.getsignal(signal.SIGALRM), signal.setitimer
    rings = iter([False, True])

    def ringing(which: int, seconds: float, again: float = 0.0) -> tuple[float, float]:
        if next(rings, False):
            signal.raise_signal(signal.SIGALRM)
        return set_timer(which, seconds, again)

    monkeypatch.setattr(signal, "setitimer", ringing)
    with Budget(60).running():
        pass
    assert list(rings) == []
    assert signal.getsignal(signal.SIGALRM) is before


def test_nobody_is_waited_for_when_the_time_is_over() -> None:
    over = Budget(1e-9)
    with pytest.raises(OutOfTimeError):
        _ = over.longest
    assert Budget(None).longest is None


def test_a_workload_gets_its_share_of_the_time_and_no_more() -> None:
    hour = Budget(60)
    assert hour.allows_another(spent=100, last=50)
    assert not hour.allows_another(spent=200, last=50)
    assert Budget(None).allows_another(spent=1e9, last=1e9)
