"""The fake engine in a process of its own, which some prompts end and some stop.

    python -m tests.fakes.dying_engine SOCKET

A prompt with "poison" in it kills the process after the first token, one with "freeze" stops it
(SIGSTOP). While SOCKET.held exists no answer goes on behind its third token. It writes `up` when it
serves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

    @contextmanager
    def holding(self) -> Iterator[None]:
        """No answer comes to its end meanwhile."""
        held = held_by(self._socket)
        held.touch()
        try:
            yield
        finally:
            held.unlink()

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


def held_by(socket: Path) -> Path:
    """The file that holds answers back."""
    return socket.with_suffix(".held")


class Gate(threading.Event):
    """Open while there is no such file."""

    def __init__(self, held: Path) -> None:
        super().__init__()
        self._held = held

    def is_set(self) -> bool:
        return not self._held.exists()


def fatal(requests: list[Request]) -> Iterator[tuple[str, signal.Signals]]:
    """The ids of new requests that ask for a signal, and which."""
    seen = 0
    while True:
        for request in requests[seen:]:
            seen += 1
            text = str(request)
            asked = [number for word, number in FATAL.items() if word in text]
            yield from ((request.request_id, number) for number in asked)
        time.sleep(0.01)


def wait_for_a_token(engine: FakeEngine, request_id: str) -> None:
    """Return when the first token of this call has left: the second one is computed then."""
    while True:
        call = engine.calls.get(request_id)
        if call is not None and call.sequences[0].generated_tokens >= 2:
            return
        time.sleep(0.01)


def main() -> None:
    socket = Path(sys.argv[1])
    with FakeEngine(socket) as engine:
        engine.behaviour.seconds_per_step = 0.02
        engine.behaviour.pause_after = 3
        engine.behaviour.release = Gate(held_by(socket))
        os.write(1, b"up\n")
        for request_id, number in fatal(engine.requests):
            wait_for_a_token(engine, request_id)
            os.kill(os.getpid(), number)


if __name__ == "__main__":
    main()
