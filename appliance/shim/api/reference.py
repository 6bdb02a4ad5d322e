"""/openapi.json and /docs: what the endpoint offers, for programs and for people. No key."""

from __future__ import annotations

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.shim.openapi import document
from appliance.shim.reference_page import page

_NOTHING_FROM_ELSEWHERE = b"default-src 'none'; style-src 'unsafe-inline'"


class OpenApiEndpoint:
    """GET /openapi.json."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _send(send, msgspec.json.encode(document()), b"application/json")


class ReferenceEndpoint:
    """GET /docs."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _send(send, page(), b"text/html; charset=utf-8")


async def _send(send: Send, body: bytes, content_type: bytes) -> None:
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode("ascii")),
        (b"content-security-policy", _NOTHING_FROM_ELSEWHERE),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
