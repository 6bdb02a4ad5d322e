"""Callers who connect and then do not behave: too many, half-way, too slow."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.soak.ask import Caller

FLOOD = 600
"""More connections than the endpoint keeps."""
FLOOD_SECONDS = 4.0
HALVES = 40
HALF_SECONDS = 12.0
SLOW = 6
SLOW_SECONDS = 12.0


def flood(port: int) -> None:
    """Very many connections at once that say nothing."""
    with _connected(port, FLOOD):
        time.sleep(FLOOD_SECONDS)


def half_sent(port: int) -> None:
    """Requests that end in their head, and others that end in their body."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode()
    body = b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    with _connected(port, HALVES) as callers:
        for number, caller in enumerate(callers):
            with suppress(OSError):
                caller.sendall(head + (body if number % 2 else b"X-Half: "))
        time.sleep(HALF_SECONDS)


def slow_readers(caller: Caller, path: str, body: Any) -> None:
    """Streams of which nobody takes a byte; then everybody hangs up."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{caller.port}\r\n"
        f"Authorization: Bearer {caller.secret}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    with _connected(caller.port, SLOW, receive_bytes=4096) as callers:
        for each in callers:
            with suppress(OSError):
                each.sendall(head.encode() + data)
        time.sleep(SLOW_SECONDS)


@contextmanager
def _connected(port: int, number: int, receive_bytes: int = 0) -> Iterator[list[socket.socket]]:
    """So many connections, as far as they can be made."""
    made: list[socket.socket] = []
    try:
        for _ in range(number):
            caller = socket.socket()
            if receive_bytes:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            caller.settimeout(5)
            with suppress(OSError):
                caller.connect(("127.0.0.1", port))
            made.append(caller)
        yield made
    finally:
        for caller in made:
            caller.close()
