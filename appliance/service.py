"""What a daemon says to its supervisor: that it serves, lives and stops. By sd_notify(3).

Owns the one datagram. Refuses to need systemd: without NOTIFY_SOCKET it does nothing, and a
supervisor that went away, or is there and does not read, never stops a daemon that serves.
"""

from __future__ import annotations

import logging
import os
import socket

PING_SECONDS = 10.0
"""How often a daemon says that it lives."""
SILENCE_SECONDS = 60.0
"""So long without a word, and a daemon that serves hangs: its supervisor ends it."""
_PATIENCE_SECONDS = 1.0
"""For a supervisor whose queue is full, where missing the word means waiting for it for ever."""
_VARIABLE = "NOTIFY_SOCKET"
_log = logging.getLogger(__name__)


def notify_ready() -> bool:
    """Say that the daemon serves (`Type=notify` units become active). True if somebody was told."""
    return _notify("READY=1", _PATIENCE_SECONDS)


def notify_stopping() -> bool:
    """Say that a graceful stop has begun. True if somebody was told."""
    return _notify("STOPPING=1", _PATIENCE_SECONDS)


def notify_alive(silence_seconds: float = SILENCE_SECONDS) -> bool:
    """Say that the daemon lives; it will say so again within `silence_seconds`, or it hangs."""
    return _notify(f"WATCHDOG=1\nWATCHDOG_USEC={int(silence_seconds * 1_000_000)}")


def _notify(state: str, patience_seconds: float = 0.0) -> bool:
    address = os.environ.get(_VARIABLE)
    if not address:
        return False
    # An address that starts with @ is in Linux's abstract namespace, unix(7).
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as client:
            client.settimeout(patience_seconds)
            client.sendto(state.encode("ascii"), target)
    except OSError as error:
        _log.warning("the supervisor could not be told %s: %s", state, error)
        return False
    return True
