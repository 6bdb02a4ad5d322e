"""Talks to a worker: a process that measures one engine, a line for each question."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
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

    def wait(self) -> None:
        """Until it can be asked."""
        self.facts = self._answer()

    def run(self, workload: Workload, seed: int) -> float:
        """Seconds that it took."""
        return float(self.ask(question(workload, seed))["seconds"])

    def ask(self, question: Mapping[str, object]) -> dict[str, Any]:
        """What it answers."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._dead() from None
        return self._answer()

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

    def _answer(self) -> dict[str, Any]:
        """The next line that is a JSON object: libraries print what they like."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise self._dead()

    def _dead(self) -> PeerError:
        self._end()
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()
        said = lines[-1] if lines else "it said nothing"
        return PeerError(f"it ended with status {self._process.returncode}: {said}")
