"""Ports that are a test's own, though it listens on them later, or again and again.

A port that was only seen to be free may be anybody's a moment later: of a test in another process,
or of a connection that the kernel gives one to. So it stays bound here, without listening: the
kernel gives it to nobody, a call to it is refused, and whoever binds it by name and sets
SO_REUSEADDR, as all our servers do, may listen on it.
"""

from __future__ import annotations

import socket
from collections import deque

_MOST = 256
"""Held at once; a test that began so many ports ago has ended."""
_held: deque[socket.socket] = deque()


def own_port() -> int:
    """A port of 127.0.0.1 that nobody else is given while this process holds it."""
    while len(_held) >= _MOST:
        _held.popleft().close()
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _held.append(holder)
    return int(holder.getsockname()[1])
