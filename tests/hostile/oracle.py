"""What a refusal has to look like: clear, in the caller's dialect, and discreet."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from tests.hostile.stack import SECONDS, Keys

Dialect = Literal["openai", "anthropic"]
_INDISCREET = re.compile(
    rb"Traceback|site-packages|\.py\b|/(?:usr|tmp|var|etc|home|root|work|opt|run|proc)/"
    rb"|msgspec|grpc|onnxruntime|sqlite|0x[0-9a-f]{6}"
)
_OPENAI = {"message", "type", "param", "code"}


class Target(Protocol):
    """Where cases go."""

    @property
    def port(self) -> int: ...
    @property
    def keys(self) -> Keys: ...


@dataclass(frozen=True, slots=True)
class Case:
    """One hostile request. A `body` that is not bytes is sent as JSON; `raw` replaces all of it.

    Attributes:
        status: that the answer may have; a number below 400 says that it is served as an honest
            request would be.
        key: the attribute of `Keys` that is sent; none if empty.
    """

    name: str
    method: str = "POST"
    path: str = "/v1/chat/completions"
    body: Any = None
    headers: Sequence[tuple[str, str]] = ()
    status: tuple[int, ...] = (400,)
    key: str = "good"
    dialect: Dialect = "openai"
    raw: bytes = b""
    replaced: frozenset[str] = field(default=frozenset())
    """Headers that the case leaves out."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; `status` 0: the connection was closed without a word."""

    status: int
    kind: str = ""
    body: bytes = b""


def send(stack: Target, case: Case, tls: ssl.SSLContext | None = None) -> Reply:
    """Send the case on a connection of its own, in clear or by `tls`."""
    with _dial(stack.port, tls) as caller:
        data = case.raw or _request(stack, case)
        data = data.replace(b"@KEY@", stack.keys.good.encode())
        # It may have heard enough before the end; what it said is read all the same.
        with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            caller.sendall(data)
        return _read(caller, case.method)


def _dial(port: int, tls: ssl.SSLContext | None) -> socket.socket:
    caller = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    return caller if tls is None else tls.wrap_socket(caller)


def _request(stack: Target, case: Case) -> bytes:
    body = case.body
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [("Host", f"127.0.0.1:{stack.port}")]
    if case.key:
        lines.append(("Authorization", f"Bearer {getattr(stack.keys, case.key)}"))
    if body is not None:
        lines += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    given = {name.lower() for name, _ in case.headers} | case.replaced
    lines = [(name, value) for name, value in lines if name.lower() not in given]
    lines += [*case.headers, ("Connection", "close")]
    head = f"{case.method} {case.path} HTTP/1.1\r\n".encode()
    head += b"".join(f"{name}: {value}\r\n".encode() for name, value in lines)
    return head + b"\r\n" + (body or b"")


class _Received:
    """A socket's bytes for the standard library's parser."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _read(caller: socket.socket, method: str) -> Reply:
    received = b""
    with suppress(ConnectionResetError, ssl.SSLEOFError):
        while piece := caller.recv(65_536):
            received += piece
            if _is_whole(received):
                break
    if not received:
        return Reply(0)
    response = http.client.HTTPResponse(_Received(received), method=method)  # type: ignore[arg-type]
    response.begin()
    return Reply(response.status, response.getheader("content-type", ""), response.read())


def _is_whole(received: bytes) -> bool:
    """Whether the answer has come, though the connection stays open."""
    head, found, rest = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(found and length and len(rest) >= int(length[1]))


def faults_of(case: Case, reply: Reply) -> list[str]:
    """What is wrong with an answer; empty if nothing is."""
    if reply.status not in case.status:
        return [f"{reply.status} instead of {case.status}: {reply.body[:200]!r}"]
    if reply.status < 400:
        return []
    found = faults_of_text(reply.body)
    try:
        document = json.loads(reply.body)
    except ValueError:
        return [*found, f"the answer is not JSON: {reply.body[:100]!r}"]
    if not reply.kind.startswith("application/json"):
        found.append(f"the answer is of the type {reply.kind!r}")
    error = document.get("error", {}) if isinstance(document, dict) else {}
    if case.dialect == "openai" and (set(document) != {"error"} or set(error) != _OPENAI):
        found.append(f"not OpenAI's shape: {document}")
    if case.dialect == "anthropic" and document.get("type") != "error":
        found.append(f"not Anthropic's shape: {document}")
    message = error.get("message")
    if not isinstance(message, str) or not 10 <= len(message) <= 1000:
        found.append(f"no clear message: {message!r}")
    return found


def faults_of_text(text: bytes) -> list[str]:
    """Whether it tells of the inside."""
    found = _INDISCREET.search(text)
    return [f"it tells {found[0]!r}: {text[:300]!r}"] if found else []
