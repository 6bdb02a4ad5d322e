"""Talks to a worker: a process that measures one engine, a line for each question."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Timer
from typing import Any

from bench_peers.work import REPOSITORY, PeerError
from gpu_check.workloads import Workload, question

_PATIENCE = 30.0


class Worker:
    """One process; methods raise PeerError where it dies.

    Attributes:
        facts: what it said of itself when it was ready.
    """

    def __init__(self, python: Path, module: str, arguments: Sequence[str], log: Path) -> None:
        self._log = log
        path = os.pathsep.join((str(REPOSITORY / "scripts"), str(REPOSITORY)))
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"PYTHONPATH": path},
            )
        self.facts: dict[str, Any] = {}

    def wait(self, limit: float | None = None) -> None:
        """Until it can be asked; `limit`: as of `ask`."""
        self.facts = self._answer(limit)

    def run(self, workload: Workload, seed: int, limit: float | None = None) -> float:
        """Seconds that it took."""
        return float(self.ask(question(workload, seed), limit)["seconds"])

    def ask(self, question: Mapping[str, object], limit: float | None = None) -> dict[str, Any]:
        """What it answers within `limit` seconds; else it is ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._dead() from None
        return self._answer(limit)

    def close(self) -> None:
        """Let it end, so that the card's memory is free when this returns."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._end()

    def kill(self) -> None:
        """End it now, whatever it does."""
        self._process.kill()
        self._end()

    def _end(self) -> None:
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # a question that was never read
                pipe.close()

    def _answer(self, limit: float | None) -> dict[str, Any]:
        """The next line that is a JSON object: libraries print what they like."""
        assert self._process.stdout is not None
        with _alarm(limit, self._process.kill) as rung:
            for line in self._process.stdout:
                if line.startswith("{"):
                    answer: dict[str, Any] = json.loads(line)
                    return answer
        if rung.is_set():
            self._end()
            raise PeerError(f"it did not answer within {limit:.0f} s")
        raise self._dead()

    def _dead(self) -> PeerError:
        self._end()
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()
        said = lines[-1] if lines else "it said nothing"
        return PeerError(f"it ended with status {self._process.returncode}: {said}")


@contextmanager
def _alarm(seconds: float | None, then: Callable[[], None]) -> Iterator[Event]:
    """Call `then` if what it encloses takes longer; set is what is given if that was so."""
    rung = Event()

    def ring() -> None:
        rung.set()
        then()

    timer = None if seconds is None else Timer(seconds, ring)
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield rung
    finally:
        if timer is not None:
            timer.cancel()
