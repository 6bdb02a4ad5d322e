"""What the engine answers with one message: vectors, or scores.

The engine refuses or answers as a whole, so REQ is written when that is known: a refusal is a
REJECT, an answer is held back until REQ and RES are durable. Owns the waiting, and the bill of a
caller who does not wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.types import Receive

from appliance.audit.event import Tokens
from appliance.errors import ApplianceError, UnavailableError
from appliance.shim.engine_errors import ENGINE_UNAVAILABLE
from appliance.shim.exchange import Exchange
from appliance.shim.lifeline import DisconnectedError
from appliance.shim.services import Services
from appliance.shim.suspects import EngineRequest

R = TypeVar("R", bound=EngineRequest)
A = TypeVar("A")


async def one_answer(
    services: Services,
    exchange: Exchange,
    receive: Receive,
    request: R,
    call: Callable[[R], Awaitable[A]],
) -> A:
    """What `call` gives for `request`. Raises as it does, and DisconnectedError."""
    try:
        async with (
            services.suspects.watching([request]) as suspicion,
            services.watched(exchange, receive),
        ):
            connected = services.engine.connected
            try:
                return await call(request)
            except UnavailableError as error:
                suspicion.engine_ended = connected and error.code == ENGINE_UNAVAILABLE
                raise
    except DisconnectedError:
        await _bill_lost(services, exchange)
        raise


async def _bill_lost(services: Services, exchange: Exchange) -> None:
    """The caller hung up: bill what the engine had computed until it noticed."""
    try:
        usages = await services.engine.settle(exchange.request_id)
    except ApplianceError:
        return
    tokens = Tokens(prompt=sum(usage.prompt_tokens for usage in usages))
    if tokens.prompt:
        bill = await services.accounting.admit(exchange)
        await bill.close("cancelled", tokens, status=0)
