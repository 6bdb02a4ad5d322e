"""Signs of life: said while the daemon can work, with more patience while a model is loaded."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.engine_daemon.stepper import Stepper
from appliance.engine_daemon.watchdog import LOADING_SECONDS, STEP_SECONDS, say
from appliance.service import SILENCE_SECONDS


@dataclass
class Work:
    is_loading: bool = False
    step_seconds: float = 0.0


def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Work) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        say(work)
        try:
            return supervisor.recv(100)
        except BlockingIOError:
            return b""
        finally:
            (tmp_path / "notify").unlink()


def test_a_daemon_says_that_it_lives_and_for_how_long_that_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work, seconds in ((Work(), SILENCE_SECONDS), (Work(is_loading=True), LOADING_SECONDS)):
        message = said(tmp_path, monkeypatch, work)
        assert message == b"WATCHDOG=1\nWATCHDOG_USEC=%d" % (seconds * 1_000_000)


def test_a_step_that_never_ends_is_no_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(tmp_path, monkeypatch, Work(step_seconds=STEP_SECONDS - 1))
    assert not said(tmp_path, monkeypatch, Work(step_seconds=STEP_SECONDS))


class Stuck:
    """An engine whose step waits to be let go."""

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()
        self.has_work = True

    def step(self) -> Sequence[object]:
        self.inside.set()
        self.go.wait()
        self.has_work = False
        return ()

    def fail_all(self) -> Sequence[object]:
        return ()


def test_a_stepper_knows_how_long_its_step_lasts() -> None:
    engine, delivered = Stuck(), threading.Event()
    awake = threading.Event()
    stepper = Stepper(engine, lambda _: delivered.set(), awake.set, name="stuck")
    assert stepper.step_seconds == 0.0
    stepper.wake()
    assert engine.inside.wait(30)
    assert awake.is_set()
    assert not stepper.sleeping
    first = stepper.step_seconds
    assert 0.0 < first < stepper.step_seconds
    engine.go.set()
    assert delivered.wait(30)
    assert stepper.step_seconds == 0.0
    stepper.stop()
