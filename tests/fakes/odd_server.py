"""An OpenAI-like server with the habits that real ones have, on a real port.

It answers /v1/models and /v1/chat/completions; a prompt's tokens are its words and two. What it
does differently is set on `OddServer.habits`, and `requests` keeps what it was asked. Its answer
is as many words as tokens were asked for.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

MODEL = "odd"
TEMPLATE_TOKENS = 2
_EMPTY: tuple[dict[str, Any], ...] = (
    {"choices": []},
    {"choices": None},
    {},
    {"choices": [{"index": 0}]},
    {"choices": [{"delta": None}], "usage": {}},
)


@dataclass
class Habits:
    """What may be changed while it runs."""

    usage: bool = True
    line_end: str = "\n"
    comments: bool = False
    empty_choices: bool = False
    """Chunks with `choices` empty, null or absent, with null deltas and an empty `usage`."""
    done: bool = True
    finish_reason: bool = True
    tokens_per_piece: int = 1
    error_after: int | None = None
    """Pieces after which the stream has an error; its text, or an object with a message."""
    error: object = field(default_factory=lambda: {"message": "the cache is full", "code": "full"})
    hang_up_after: int | None = None
    """Pieces after which the connection is closed."""
    nonsense_after: int | None = None
    """Pieces after which an event is not JSON."""
    silent_after: int | None = None
    """Pieces after which nothing more comes until `release`."""
    unknown: frozenset[str] = frozenset()
    """Parameters that are refused with 400."""
    status: int = 200
    """Of every answer that streams."""
    body: bytes = b'{"error": {"message": "out of order"}}'
    """Of an answer with another status."""
    ends_early: bool = False
    """Answers of half of the tokens asked for."""
    models: tuple[str, ...] = (MODEL,)
    embedders: tuple[str, ...] = ()
    """Further models, which do not chat and say so."""
    key: str | None = None
    tokenize: bool = False
    seconds_per_piece: float = 0.0
    chunked: bool = True


class OddServer:
    """`with OddServer() as server:` serves at `server.base_url`, over TLS with a `tls` context."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.habits = Habits()
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.release = threading.Event()
        owner = self

        class Handler(_Handler):
            server_of = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def base_url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> OddServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def prompts(self) -> list[str]:
        """The texts it was asked, in order."""
        return [request["messages"][-1]["content"] for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: OddServer

    def handle(self) -> None:
        """One connection; callers that hang up in the middle of a handshake are no matter."""
        with suppress(ssl.SSLError, ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        habits = self.server_of.habits
        if not self._known():
            return
        if self.path != "/v1/models" or not habits.models:
            self._document(404, {"error": {"message": "nothing here"}})
            return
        data = [{"id": name} for name in habits.models]
        data += [{"id": name, "kind": "embedding"} for name in habits.embedders]
        self._document(200, {"object": "list", "data": data})

    def do_POST(self) -> None:
        habits, owner = self.server_of.habits, self.server_of
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        owner.paths.append(self.path)
        if not self._known():
            return
        if self.path == "/tokenize" and habits.tokenize:
            self._document(200, {"count": _count(request)})
            return
        if self.path != "/v1/chat/completions":
            self._document(404, {"error": {"message": "nothing here"}})
            return
        owner.requests.append(request)
        unknown = sorted(habits.unknown & request.keys())
        if unknown:
            self._document(400, {"error": {"message": f"unknown parameter: {unknown[0]}"}})
        elif habits.status != 200:
            self._answer(habits.status, habits.body)
        else:
            self._stream(request)

    def _known(self) -> bool:
        """Whether the caller may ask."""
        key = self.server_of.habits.key
        if key is None or self.headers["authorization"] == f"Bearer {key}":
            return True
        self._document(401, {"error": "no such key"})
        return False

    def _document(self, status: int, document: object) -> None:
        self._answer(status, json.dumps(document).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, request: dict[str, Any]) -> None:
        habits = self.server_of.habits
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        if habits.chunked:
            self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        try:
            for frame in self._frames(request):
                self._write(frame)
            if habits.chunked:
                self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError, _HangUpError):
            pass

    def _write(self, frame: bytes) -> None:
        if self.server_of.habits.chunked:
            frame = b"%x\r\n%s\r\n" % (len(frame), frame)
        self.wfile.write(frame)

    def _frames(self, request: dict[str, Any]) -> Iterator[bytes]:
        habits, owner = self.server_of.habits, self.server_of
        asked = request.get("max_tokens") or request["max_completion_tokens"]
        tokens = max(asked // 2, 1) if habits.ends_early else asked
        yield self._frame(_chunk({"role": "assistant", "content": ""}))
        for piece in range(-(-tokens // habits.tokens_per_piece)):
            if habits.comments:
                yield f": still here{habits.line_end * 2}".encode()
            if habits.empty_choices:
                yield from map(self._frame, _EMPTY)
            if piece == habits.error_after:
                yield self._frame({"error": habits.error})
                return
            if piece == habits.hang_up_after:
                raise _HangUpError
            if piece == habits.nonsense_after:
                yield b"data: {nonsense\n\n"
            if piece == habits.silent_after:
                owner.release.wait()
            time.sleep(habits.seconds_per_piece)
            yield self._frame(_chunk({"content": "word "}))
        if habits.finish_reason:
            yield self._frame({"choices": [{"delta": {}, "finish_reason": "length"}]})
        if habits.usage and request.get("stream_options", {}).get("include_usage"):
            counts = {"prompt_tokens": _count(request), "completion_tokens": tokens}
            yield self._frame({"choices": [], "usage": counts})
        if habits.done:
            yield f"data: [DONE]{habits.line_end * 2}".encode()

    def _frame(self, document: object) -> bytes:
        end = self.server_of.habits.line_end
        return f"data: {json.dumps(document)}{end}{end}".encode()


class _HangUpError(Exception):
    """The connection is to be closed."""


def _chunk(delta: dict[str, str]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def _count(request: dict[str, Any]) -> int:
    """A prompt's tokens: its words and the template's."""
    return TEMPLATE_TOKENS + sum(len(m["content"].split()) for m in request["messages"])
