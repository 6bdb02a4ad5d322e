"""The foreground supervisor, with real processes: order, restart, limit, stop, death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.config import Layout
from appliance.errors import ConflictError, LockedError, NotFoundError
from appliance.fsops import exclusive_lock
from installer import supervise

# argv: where to write, how long daemons may be silent, their names; a daemon called "bad…" ends at
# once, the others serve; all but "mute…" say that they live.
_SUPERVISOR = """
import logging, sys
from installer import supervise
supervise.RESTART_SECONDS = 0.05
logging.basicConfig(level=logging.INFO, format="%(message)s")
work, silence, *names = sys.argv[1:]
code = '''
import signal, sys, time
from appliance.service import notify_alive, notify_ready
path, silence, name = sys.argv[1:]
def say(word):
    with open(path, "a") as f: f.write(name + " " + word + "\\\\n")
def stop(*_):
    say("stopped"); sys.exit(0)
signal.signal(signal.SIGTERM, stop)
say("started")
if name.startswith("bad"): sys.exit(3)
time.sleep(0.2)
notify_ready()
while not name.startswith("mute"):
    notify_alive(float(silence))
    time.sleep(0.1)
time.sleep(600)
'''
daemons = [supervise.Daemon(n, [sys.executable, "-c", code, work, silence, n]) for n in names]
supervise.Supervisor(daemons).run()
"""
PATIENCE = 300.0


class Running:
    """A supervisor in a process of its own."""

    def __init__(self, work: Path, *names: str, silence: float = 300.0) -> None:
        self._said = work / "said"
        self._said.touch()
        # Read through another descriptor: where this one stands is where the next line is written.
        self.log = (work / "log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SUPERVISOR, str(self._said), str(silence), *names],
            stderr=self.log,
        )

    def said(self) -> list[str]:
        return self._said.read_text().splitlines()

    def wait_for(self, text: str, *, count: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE
        while sum(text in line for line in [*self.said(), *self.logged()]) < count:
            assert time.monotonic() < deadline, (self.said(), self.logged())
            time.sleep(0.02)

    def logged(self) -> list[str]:
        return Path(self.log.name).read_text().splitlines()

    def daemon(self, name: str) -> int:
        """Process number of the daemon that was started last under this name."""
        lines = [line for line in self.logged() if line.startswith(f"{name} started (process ")]
        return int(lines[-1].removesuffix(")").rpartition(" ")[2])

    def stop(self) -> int:
        self.process.terminate()
        status = self.process.wait(PATIENCE)
        self.log.close()
        return status


def test_daemons_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    running = Running(tmp_path, "engine", "shim")
    running.wait_for("shim serves")
    logged = running.logged()
    serves = logged.index("engine serves")
    assert not any(line.startswith("shim started") for line in logged[:serves])
    assert running.stop() == 0
    assert running.said()[-2:] == ["shim stopped", "engine stopped"]


def test_a_daemon_that_dies_is_started_again(tmp_path: Path) -> None:
    running = Running(tmp_path, "engine", "shim")
    running.wait_for("shim serves")
    os.kill(running.daemon("engine"), signal.SIGKILL)
    running.wait_for("engine serves", count=2)
    assert "engine ended (signal SIGKILL); it starts again" in running.logged()
    assert running.stop() == 0


def test_a_daemon_that_keeps_failing_ends_the_supervisor(tmp_path: Path) -> None:
    running = Running(tmp_path, "engine", "bad")
    assert running.process.wait(PATIENCE) != 0
    assert running.said().count("bad started") == supervise.MAX_STARTS
    assert "engine stopped" in running.said(), "the other was stopped properly"
    assert any("the bad ended 5 times" in line for line in running.logged())
    running.log.close()


def test_a_daemon_that_hangs_is_ended_and_started_again(tmp_path: Path) -> None:
    running = Running(tmp_path, "engine", "mute", silence=3.0)
    running.wait_for("mute serves")
    first = running.daemon("engine")
    os.kill(first, signal.SIGSTOP)
    running.wait_for("engine serves", count=2)
    assert "engine hangs: it is ended" in running.logged()
    assert running.daemon("engine") != first
    assert sum(line.startswith("mute started") for line in running.logged()) == 1
    assert running.stop() == 0


def test_daemons_do_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    running = Running(tmp_path, "engine", "shim")
    running.wait_for("shim serves")
    running.process.kill()
    running.process.wait(PATIENCE)
    running.wait_for("engine stopped")
    running.wait_for("shim stopped")
    running.log.close()


def test_serving_is_visible_to_other_processes(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert not supervise.is_serving(layout)
    layout.run.mkdir(parents=True)
    assert not supervise.is_serving(layout)
    with exclusive_lock(layout.run / supervise.LOCK_NAME):
        assert supervise.is_serving(layout)


def test_serving_is_refused_where_it_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConflictError):
        supervise.serve(Layout(Path("/")))
    with pytest.raises(NotFoundError):
        supervise.serve(Layout(tmp_path))
    layout = Layout(tmp_path)
    layout.run.mkdir(parents=True)
    layout.python.parent.mkdir(parents=True)
    layout.python.symlink_to(sys.executable)
    with (
        exclusive_lock(layout.run / supervise.LOCK_NAME),
        pytest.raises(LockedError, match="runs for"),
    ):
        supervise.serve(layout)
