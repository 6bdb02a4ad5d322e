"""Compiles a grammar where it may fail: in a process of its own, with bounded time and memory.

Owns that process. It starts with the first grammar, and anew after one that killed it. What
compiled here in time compiles in the daemon as well, at the same cost. Blocking; one at a time.
"""

from __future__ import annotations

import json
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.errors import UnavailableError
from appliance.prompting.child import machine_busy

SECONDS: Final = 30.0
"""Of waiting, on whatever loaded machine; the worker's own limit is of processor time."""
_TOKEN = re.compile(r"<\[(\d+)\]>")
_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a grammar.

    Attributes:
        error: what is wrong with it; empty if it compiles.
        seconds: of processor time, if it was stopped at least so much.
    """

    error: str
    seconds: float


TOO_MUCH: Final = Verdict("compiling it takes too much time or memory", 1.0)


class Trial:
    """The worker and its pipes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def compile(self, grammar: str, limits: Mapping[str, object]) -> Verdict:
        """What compiling `grammar` comes to. Raises UnavailableError if nobody can say now."""
        # The worker's tokens are bytes; which of them a tag is makes no difference here.
        text = _TOKEN.sub(lambda match: f"<[{int(match[1][-9:]) % _BYTES}]>", grammar)
        job = json.dumps({"grammar": text, "limits": dict(limits)}).encode() + b"\n"
        with self._lock:
            if self._closed:
                raise UnavailableError("the model is being unloaded", hint="try again in a moment")
            process = self._process or self._start()
            try:
                answer = _ask(process, job, time.monotonic() + SECONDS)
            except TimeoutError:
                self._stop()
                raise machine_busy() from None
            if answer is None:
                self._stop()
                return TOO_MUCH
        return Verdict(**json.loads(answer))

    def close(self) -> None:
        """End the process, for good."""
        with self._lock:
            self._closed = True
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        worker = Path(__file__).with_name("trial_worker.py")
        try:
            # Of its own process group: a Ctrl-C at the terminal is for the daemon to handle.
            self._process = subprocess.Popen(
                [sys.executable, "-I", worker],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                process_group=0,
            )
        except OSError as error:
            raise UnavailableError(
                f"no process for grammars can be started: {error.strerror}",
                hint="free memory, or ask without a grammar",
            ) from None
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # it still held bytes that nobody will read


def _ask(process: subprocess.Popen[bytes], job: bytes, deadline: float) -> bytes | None:
    """The worker's line; None if it died. Raises TimeoutError."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(job)
        process.stdin.flush()
    except OSError:
        return None
    poller = select.poll()
    poller.register(process.stdout, select.POLLIN)
    # The answer is one write, and shorter than a pipe's atomic size: one look is enough.
    if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
    line = process.stdout.readline()
    return line if line.endswith(b"\n") else None
