"""A shim over a fake engine: the real server on a real port, in a thread of its own.

What a test wants to know afterwards (audit records, usage rows, metrics) is read from the files
and routes that an operator would read.
"""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from appliance.access import KeyStore, new_key
from appliance.audit import create_signer, read_events
from appliance.audit.event import AnyEvent, Reject, Request, Response
from appliance.config import ApiSettings, Config, Layout
from appliance.metering import Clock, Meter, UsageRow
from appliance.shim.server import serve
from installer.local_endpoint import connection
from installer.tls import ensure
from tests.fakes.engine import CHAT, FakeEngine
from tests.fakes.ports import own_port

PATIENCE = 120.0
"""Seconds until a test gives up: what comes late on a busy machine has not failed to come."""


def ask(text: str = "hello", **more: Any) -> dict[str, Any]:
    """The body of a chat request with one user message."""
    return {"model": CHAT, "messages": [{"role": "user", "content": text}], **more}


def prepare(root: Path, **settings: Any) -> Config:
    """The files that an installation leaves for the shim."""
    layout = Layout(root)
    for directory in (layout.audit, layout.access, layout.metering, layout.responses, layout.run):
        directory.mkdir(parents=True)
    create_signer(layout.audit_key, "test")
    config = Config(layout, api=ApiSettings(listen_port=own_port(), **settings))
    ensure(config)
    return config


class Node:
    """The running pair, and what it leaves behind."""

    def __init__(self, config: Config, engine: FakeEngine) -> None:
        self.config = config
        self.engine = engine
        with KeyStore(config.layout.keys_db) as keys:
            self.key, self.secret = keys.create("test")

    @property
    def base_url(self) -> str:
        return self.config.base_url

    @cached_property
    def office(self) -> str:
        """The secret of an admin key."""
        key = new_key("office", kind="admin")
        with KeyStore(self.config.layout.keys_db) as keys:
            keys.add(key)
        return key.secret

    def connect(self) -> http.client.HTTPConnection:
        """A connection of the caller's own."""
        return connection(self.config, PATIENCE)

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: dict[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Answer:
        """One request with the node's key; a `body` that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Authorization": f"Bearer {self.secret}"}
        if body is not None:
            given["Content-Type"] = "application/json"
        given |= headers or {}
        used = connection or self.connect()
        try:
            used.request(method, path, data if body is not None else None, given)
            response = used.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            if connection is None:
                used.close()

    def events(self) -> list[AnyEvent]:
        """All audit records so far."""
        return [event for _, event in read_events(self.config.layout.audit)]

    def kept(self) -> dict[Path, bytes]:
        """Every file of a shim that has stopped: before, journals and temporaries come and go."""
        root = self.config.layout.root
        return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def req(self, request_id: str) -> Request:
        """The one REQ of a request."""
        (found,) = [
            e for e in self.events() if isinstance(e, Request) and e.request_id == request_id
        ]
        return found

    def res(self, request_id: str = "") -> Response:
        """The one RES of a request (of the last one), as soon as it is there."""

        def find() -> Response | None:
            found = [e for e in self.events() if isinstance(e, Response)]
            chosen = [e for e in found if not request_id or e.request_id == request_id]
            assert not request_id or len(chosen) <= 1, "one RES for each REQ"
            return chosen[-1] if chosen else None

        return eventually(find)

    def reject(self, request_id: str) -> Reject:
        """The one REJECT of a request, which has no REQ."""
        events = [e for e in self.events() if getattr(e, "request_id", "") == request_id]
        (event,) = events
        assert isinstance(event, Reject)
        return event

    def row(self, request_id: str) -> UsageRow:
        """The usage row of a request, as soon as it is there."""

        def find() -> UsageRow | None:
            meter = Meter(self.config.layout.usage_db)
            try:
                return next((r for r in meter.rows() if r.request_id == request_id), None)
            finally:
                meter.close()

        return eventually(find)

    def stream(
        self, body: object, path: str = "/v1/chat/completions", *, secret: str = ""
    ) -> Frames:
        """Start a streamed request and read its answer frame by frame."""
        connection = self.connect()
        bearer = f"Bearer {secret or self.secret}"
        headers = {"Authorization": bearer, "Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        return Frames(connection, connection.getresponse())

    def metric(self, line: str) -> float:
        """The value of the sample that begins with `line`."""
        text = self.request("GET", "/metrics").body.decode()
        for row in text.splitlines():
            if row.startswith(line + " "):
                return float(row.rpartition(" ")[2])
        raise KeyError(line)


@contextmanager
def standing(root: Path, **settings: Any) -> Iterator[Node]:
    """A shim in front of a fake engine, below `root`."""
    config = prepare(root, **settings)
    with FakeEngine(config.layout.engine_socket) as engine, running_shim(config):
        yield Node(config, engine)


class Frames:
    """A streamed answer: iterating gives each frame's bytes without the blank line."""

    def __init__(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers = dict(response.getheaders())
        self.request_id = self.headers["x-request-id"]

    def __iter__(self) -> Iterator[bytes]:
        frame = b""
        for line in self._response:
            if line == b"\n":
                yield frame
                frame = b""
            else:
                frame += line
        assert not frame, "the last frame ends with a blank line"
        self.hang_up()

    def documents(self) -> list[Any]:
        """The data of every frame up to the end, decoded; [DONE] as the string."""
        lines = [line for frame in self for line in frame.splitlines()]
        data = [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]
        return ["[DONE]" if d == b"[DONE]" else json.loads(d) for d in data]

    def hang_up(self) -> None:
        """Close the connection as a caller does who has lost interest."""
        self._response.close()
        self._connection.close()


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which is the whole answer and complete."""
        assert self.headers["content-type"] == "application/json"
        document = self.json
        assert list(document) == ["error"]
        error: dict[str, Any] = document["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert isinstance(error["code"], str)
        return error

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]


T = TypeVar("T")


def eventually(find: Callable[[], T | None], seconds: float = PATIENCE) -> T:
    """What `find` returns as soon as it returns something."""
    deadline = time.monotonic() + seconds
    while True:
        found = find()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come")
        time.sleep(0.01)


@contextmanager
def running_shim(config: Config, clock: Clock | None = None) -> Iterator[ShimThread]:
    """The shim of `config`, stopped gracefully at the end."""
    shim = ShimThread(config, clock)
    shim.start()
    try:
        yield shim
    finally:
        shim.stop()
        shim.join()


class ShimThread:
    """`serve` in a thread with an event loop of its own."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shim")
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(PATIENCE), "the shim did not start"
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Begin a graceful stop."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)

    def join(self, seconds: float = PATIENCE) -> None:
        """Wait until it has ended."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the shim did not stop"
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await serve(self._config, stop=self._stop, ready=self._ready.set, clock=self._clock)
