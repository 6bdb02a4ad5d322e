"""The fake engine in a process of its own, which some prompts end and some stop.

    python -m tests.fakes.dying_engine SOCKET

A prompt with "poison" in it kills the process after the first token, one with "freeze" stops it
(SIGSTOP). It writes `up` when it serves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.pb import engine_v1_pb2 as pb
from tests.conftest import REPOSITORY
from tests.fakes.engine import FakeEngine

FATAL = {"poison": signal.SIGKILL, "freeze": signal.SIGSTOP}


class DyingEngine:
    """Keeps one process running, as a supervisor would; `deaths` counts the others."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._stopping = False
        self._process = self._start()
        self.deaths = 0
        self._thread = threading.Thread(target=self._supervise)
        self._thread.start()

    def revive(self) -> None:
        """End a process that is stopped, as a watchdog would; another one takes its place."""
        self._process.kill()

    def close(self) -> None:
        self._stopping = True
        self._process.kill()
        self._thread.join()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.fakes.dying_engine", str(self._socket)]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    def _supervise(self) -> None:
        while not self._stopping:
            self._process.wait()
            self._close_pipe()
            if not self._stopping:
                self.deaths += 1
                self._process = self._start()
        self._process.kill()
        self._process.wait()
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self._process.stdout is not None:
            self._process.stdout.close()


Request = pb.GenerateRequest | pb.EmbedRequest | pb.ScoreRequest


class Watched(list[Request]):
    """Requests to `engine`, which says no third token from the first fatal one on: however late
    its end comes, no answer is complete before."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__()
        self._engine = engine

    def append(self, request: Request) -> None:
        if signal_of(request) is not None:
            self._engine.behaviour.pause_after = 2
        super().append(request)


def signal_of(request: Request) -> signal.Signals | None:
    """What `request` ends the process by."""
    text = str(request)
    return next((number for word, number in FATAL.items() if word in text), None)


def fatal(engine: FakeEngine) -> Iterator[signal.Signals]:
    """The signals that new requests ask for, each once the first token of its request has left."""
    seen = 0
    while True:
        for request in engine.requests[seen:]:
            number = signal_of(request)
            if number is not None:
                _await_second_token(engine, request.request_id)
                yield number
            seen += 1
        time.sleep(0.01)


def _await_second_token(engine: FakeEngine, request_id: str) -> None:
    """It is made when the first one was handed over."""
    while (call := engine.calls.get(request_id)) is None or not (
        call.ended.is_set() or call.sequences[0].generated_tokens > 1
    ):
        time.sleep(0.01)


def main() -> None:
    with FakeEngine(Path(sys.argv[1])) as engine:
        engine.behaviour.seconds_per_step = 0.02
        engine.requests = Watched(engine)
        os.write(1, b"up\n")
        for number in fatal(engine):
            os.kill(os.getpid(), number)


if __name__ == "__main__":
    main()
