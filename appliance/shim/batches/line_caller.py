"""One line of a batch as a request of its own, through the endpoint that applications call.

Owns the request around it: a fresh id, the holder of the batch as its caller, the batch price, the
lowest priority. Admission, audit, metering and errors are the endpoint's. Its caller stays on the
line until `hang_up`, which is a caller hanging up: the engine stops and the bill is exact.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.access import KeyInfo, KeyStore
from appliance.errors import RequestError
from appliance.shim.accounting import Accounting
from appliance.shim.batches.gate import PRIORITY
from appliance.shim.exchange import Exchange, Keep, exchange_of, new_request_id
from appliance.shim.layers.answer_errors import AnswerErrorsLayer
from appliance.shim.layers.authorise import check
from appliance.shim.layers.record_rejections import RecordRejectionsLayer
from appliance.shim.refusals import ErrorDocument
from appliance.shim.revocation import key_revoked

_STATUSES_OF_NOW = frozenset({429, 503})
_STATUSES_OF_FAULTS = frozenset({500})
_ONCE_MORE = frozenset({"engine_error", "internal_error"})
"""Faults that this very line may have caused: it is not tried for ever."""
_TRIES = 3
_ERROR = msgspec.json.Decoder(ErrorDocument)


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What the endpoint said."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes

    @property
    def code(self) -> str:
        """The error's code."""
        return _ERROR.decode(self.body).error.code

    def passes(self, tries: int) -> bool:
        """Whether the same line may be answered well later, after `tries` in vain."""
        if self.headers.get(b"x-should-retry") == b"false":
            return False
        if self.status not in _STATUSES_OF_NOW | _STATUSES_OF_FAULTS:
            return False
        return self.code not in _ONCE_MORE or tries < _TRIES

    @property
    def wait(self) -> float:
        """Seconds after which to try again."""
        milliseconds = self.headers.get(b"retry-after-ms")
        if milliseconds is not None:
            return int(milliseconds) / 1000
        return float(self.headers.get(b"retry-after", b"1"))


class LineCaller:
    """Calls `endpoints`, by path, on behalf of the holders of batches."""

    def __init__(
        self, endpoints: Mapping[str, ASGIApp], accounting: Accounting, keys: KeyStore
    ) -> None:
        self._keys = keys
        self._apps = {
            path: AnswerErrorsLayer(
                RecordRejectionsLayer(_Holding(endpoint), accounting, frozenset())
            )
            for path, endpoint in endpoints.items()
        }

    def holder(self, key_id: str) -> KeyInfo:
        """Who has the batch now that `key_id` made: it, or what replaced it by rotation."""
        key = self._keys.get(key_id)
        while key.revoked is None and key.successor:
            key = self._keys.get(key.successor)
        return key

    def exchange(self, path: str, key: KeyInfo, keep: Keep) -> Exchange:
        """The request for one try of a line."""
        return Exchange(new_request_id(), path, key=key, batch=True, priority=PRIORITY, keep=keep)

    async def call(
        self, exchange: Exchange, body: bytes, hang_up: asyncio.Event
    ) -> LineAnswer | None:
        """The answer to `body`; None if it was hung up."""
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": exchange.route,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        exchange.attach(scope)
        heard = _Heard()
        await self._apps[exchange.route](scope, _line(body, hang_up), heard.send)
        return heard.answer()


def _line(body: bytes, hang_up: asyncio.Event) -> Receive:
    whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def receive() -> Message:
        nonlocal whole
        if whole is None:
            await hang_up.wait()
            return {"type": "http.disconnect"}
        message, whole = whole, None
        return message

    return receive


class _Heard:
    """What came over the line."""

    def __init__(self) -> None:
        self._head: Message | None = None
        self._body: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
        else:
            self._body.append(message.get("body", b""))

    def answer(self) -> LineAnswer | None:
        if self._head is None:
            return None
        return LineAnswer(self._head["status"], dict(self._head["headers"]), b"".join(self._body))


class _Holding:
    """Lets a line through whose holder's key is valid now, and for this."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        key = exchange.key
        assert key is not None
        state = key.state(time.time())
        if state == "expired":
            raise RequestError("the API key has expired", code="invalid_api_key")
        if state != "active":
            raise key_revoked()
        check(key, exchange.route)
        await self._app(scope, receive, send)
