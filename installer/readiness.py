"""Being told by a daemon that it serves and lives: the receiving end of sd_notify(3).

Owns one datagram socket in the abstract namespace, so there is no path to be too long and no
file to be left behind. `appliance.service` is the sending end; systemd plays this part in a
system installation.
"""

from __future__ import annotations

import secrets
import select
import socket
import time
from collections.abc import Callable

from appliance.service import SILENCE_SECONDS

VARIABLE = "NOTIFY_SOCKET"
_TICK_SECONDS = 0.25


class ReadinessSocket:
    """Hand `environment` to a daemon; `is_ready` becomes true when it says READY=1."""

    def __init__(self) -> None:
        self._name = f"appliance-{secrets.token_hex(8)}"
        self._expected: float | None = None
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._socket.bind(f"\0{self._name}")

    @property
    def environment(self) -> dict[str, str]:
        """The variable that tells a daemon where to send."""
        return {VARIABLE: f"@{self._name}"}

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def is_ready(self) -> bool:
        """Whether READY=1 has come since the last call. Does not wait."""
        ready = False
        while True:
            try:
                message = self._socket.recv(4096).split(b"\n")
            except BlockingIOError:
                return ready
            ready = ready or b"READY=1" in message
            if b"WATCHDOG=1" in message:
                self._expected = time.monotonic() + _silence(message)

    @property
    def is_overdue(self) -> bool:
        """Whether the daemon once said that it lives, and did not say so again in time."""
        return self._expected is not None and time.monotonic() > self._expected

    def forget(self) -> None:
        """The daemon has ended: expect nothing of the next one until it speaks."""
        self.is_ready()
        self._expected = None

    def wait(self, seconds: float, *, until: Callable[[], bool]) -> bool:
        """Wait for READY=1; false when time is over or `until` says that it will not come."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.is_ready():
                return True
            if until():
                return False
            select.select([self._socket], [], [], _TICK_SECONDS)
        return False

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _silence(message: list[bytes]) -> float:
    """How long the daemon may be silent after `message`, in seconds."""
    for line in message:
        name, _, value = line.partition(b"=")
        if name == b"WATCHDOG_USEC" and value.isdigit():
            return int(value) / 1_000_000
    return SILENCE_SECONDS
