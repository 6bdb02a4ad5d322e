"""gRPC statuses of the engine as typed errors.

The engine puts its error code, hint and parameter into trailing metadata (engine_v1.proto); the
status decides the class, so that an engine that sends no metadata is still understood.
"""

from __future__ import annotations

from urllib.parse import unquote

from appliance.errors import (
    ApplianceError,
    CapacityError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from appliance.shim.rpc import RpcError, Status

ENGINE_UNAVAILABLE = "engine_unavailable"
_AWAY = "the engine does not answer"
_TOO_LARGE = "message larger than max"
"""In gRPC's own words for a message that it does not carry, sent or received."""


def engine_away() -> UnavailableError:
    """The engine ended, or does not answer."""
    return UnavailableError(_AWAY, hint="try again shortly", code=ENGINE_UNAVAILABLE)


def unanswered(error: RpcError) -> ApplianceError:
    """The same as `typed`, of a call whose deadline is ours and not its caller's."""
    away = error.status is Status.DEADLINE_EXCEEDED
    return engine_away() if away else typed(error)


def typed(error: RpcError) -> ApplianceError:
    """The typed error that `error` stands for."""
    metadata = error.metadata
    code = metadata.get("appliance-code")
    hint = unquote(metadata.get("appliance-hint", ""))
    message = error.message or "the engine refused the request"
    match error.status:
        case Status.INVALID_ARGUMENT | Status.OUT_OF_RANGE:
            param = unquote(metadata.get("appliance-param", "")) or None
            return RequestError(message, param=param, hint=hint, code=code)
        case Status.NOT_FOUND:
            return NotFoundError(message, hint=hint, code=code or "model_not_found")
        case Status.RESOURCE_EXHAUSTED if code is None and _TOO_LARGE in message:
            return RequestError("the request is too large for the engine", hint="send less at once")
        case Status.RESOURCE_EXHAUSTED:
            return CapacityError(message, hint=hint, code=code)
        case Status.FAILED_PRECONDITION:
            return UnavailableError(message, hint=hint, code=code or "model_unavailable")
        case Status.DEADLINE_EXCEEDED:
            return UnavailableError(message, hint=hint, code="timeout")
        case Status.UNAVAILABLE if code is not None:
            return UnavailableError(message, hint=hint, code=code)
        case Status.UNAVAILABLE:
            # gRPC's own words name sockets and errno: of no use to the caller.
            return engine_away()
        case _:
            return UnavailableError(
                f"the engine failed with {error.status.name}",
                hint="the engine's log has the reason",
                code="engine_error",
            )
