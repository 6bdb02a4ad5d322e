"""Turns every error below it into an answer in the API's shape.

Owns the log line of a failure. Refuses to log or to answer with an exception's text unless it is
one of ours: another one's may quote the request's content.
"""

from __future__ import annotations

import logging
import traceback

from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import ApplianceError
from appliance.shim.exchange import Exchange, exchange_of
from appliance.shim.lifeline import DisconnectedError
from appliance.shim.refusals import INTERNAL, refusal

_log = logging.getLogger(__name__)


class AnswerErrorsLayer:
    """After the first byte of an answer it is too late for a status: the handler speaks then."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        try:
            await self._app(scope, receive, send)
        except DisconnectedError:
            return
        except ApplianceError as error:
            answer = refusal(error, exchange.dialect, exchange.request_id)
            _log_failure(exchange, answer.status, error)
        except Exception as error:
            answer = refusal(INTERNAL, exchange.dialect, exchange.request_id)
            _log_bug(exchange, error)
        else:
            return
        if not exchange.status:
            await _send(send, answer.status, answer.body, answer.headers)


async def _send(
    send: Send, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    length = str(len(body)).encode("ascii")
    head = [(b"content-type", b"application/json"), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def _log_failure(exchange: Exchange, status: int, error: ApplianceError) -> None:
    if status >= 500:
        _log.error("%s %s: %s", exchange.request_id, exchange.route, error.code)


def _log_bug(exchange: Exchange, error: Exception) -> None:
    where = "".join(traceback.format_tb(error.__traceback__))
    _log.error("%s %s: %s\n%s", exchange.request_id, exchange.route, type(error).__name__, where)
