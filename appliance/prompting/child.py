"""A process that does one kind of work for this one, and costs one request if it dies or hangs.

Owns its start, two pipes and deadlines on both of them. It has no environment, runs isolated from
the user's Python packages, and is of its own process group: a Ctrl-C at the terminal is for the
daemon to handle. What is said over the pipes is its user's business.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time


class ChildLostError(Exception):
    """The process died, or did not answer in time."""


class Child:
    """A running `python -m module`."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            process_group=0,
        )

    def send(self, data: bytes, deadline: float) -> None:
        """Write all of `data` by `deadline` of the monotonic clock. Raises ChildLostError."""
        assert self._process.stdin is not None
        fd = self._process.stdin.fileno()
        os.set_blocking(fd, False)
        view = memoryview(data)
        while view:
            _wait(fd, select.POLLOUT, deadline)
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise ChildLostError("its process ended") from None

    def receive(self, size: int, deadline: float) -> bytes:
        """The next `size` bytes, by `deadline`. Raises ChildLostError."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        data = bytearray()
        while len(data) < size:
            _wait(fd, select.POLLIN, deadline)
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


def _wait(fd: int, event: int, deadline: float) -> None:
    poller = select.poll()
    poller.register(fd, event)
    left = deadline - time.monotonic()
    if left <= 0 or not poller.poll(left * 1000):
        raise ChildLostError("it took too long")
