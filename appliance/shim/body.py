"""The whole body of a request, as the limiting layer hands it down in one message."""

from __future__ import annotations

from starlette.types import Receive


async def read_body(receive: Receive) -> bytes:
    """The body; after this, `receive` waits for the disconnect."""
    message = await receive()
    assert not message["more_body"], "layers/limit_body.py reads a body to its end"
    body: bytes = message["body"]
    return body
