"""A process that does one kind of work for this one, and costs one request if it dies or hangs.

Owns its start, two pipes and the limits on what it may take for an answer. The limit that is its
own fault to exceed is one of processor time; that it was not let run, or we were not, is nobody's,
and is told apart. It has no environment, runs isolated from the user's Python packages, and is of
its own process group: a Ctrl-C at the terminal is for the daemon to handle. What is said over the
pipes is its user's business.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from typing import Final

from appliance.errors import UnavailableError

LATE_SECONDS: Final = 25.0
"""By the clock, beyond its processor time, before it counts as held up."""
_LEAST_WAIT: Final = 0.01
"""Seconds between two looks at how much it has used."""


class ChildLostError(Exception):
    """The process died, or used all of its processor time."""


class Child:
    """A running `python -m module`. Everything raises ChildLostError; `send` and `receive` raise
    UnavailableError with code `machine_busy` if it could not answer in time by the clock."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            process_group=0,
        )
        self._used_up = self._late = 0.0

    def begin(self, seconds: float, late_seconds: float = LATE_SECONDS) -> None:
        """Until the next `begin` it has `seconds` of processor time, and `late_seconds` more by
        the clock."""
        self._used_up = self._used() + seconds
        self._late = time.monotonic() + seconds + late_seconds

    def send(self, data: bytes) -> None:
        """Write all of `data`."""
        assert self._process.stdin is not None
        fd = self._process.stdin.fileno()
        os.set_blocking(fd, False)
        view = memoryview(data)
        while view:
            self._wait(fd, select.POLLOUT)
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise ChildLostError("its process ended") from None

    def receive(self, size: int) -> bytes:
        """The next `size` bytes."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        data = bytearray()
        while len(data) < size:
            self._wait(fd, select.POLLIN)
            part = os.read(fd, size - len(data))
            if not part:
                raise ChildLostError("its process ended")
            data += part
        return bytes(data)

    def kill(self) -> None:
        """End it, and wait for its end."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _wait(self, fd: int, event: int) -> None:
        """Return when `fd` is ready. What is ready counts, however late it is looked for: it may
        be this process that was stopped meanwhile."""
        poller = select.poll()
        poller.register(fd, event)
        while True:
            unused, left = self._used_up - self._used(), self._late - time.monotonic()
            over = min(unused, left) <= 0
            # It has one thread: it cannot use more than passes.
            wait = 0.0 if over else max(min(unused, left), _LEAST_WAIT)
            if poller.poll(wait * 1000):
                return
            if over and unused <= 0:
                raise ChildLostError("it took too long")
            if over:
                raise machine_busy()

    def _used(self) -> float:
        """Seconds of processor time since it began."""
        try:
            return time.clock_gettime(~self._process.pid << 3 | 2)  # clock_getcpuclockid(3)
        except OSError:
            raise ChildLostError("its process ended") from None


def machine_busy() -> UnavailableError:
    """A process that works for the engine got too little of the machine to answer."""
    return UnavailableError(
        "the machine was too busy, or stopped, to prepare this request",
        hint="try again shortly",
        code="machine_busy",
    )
