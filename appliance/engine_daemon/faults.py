"""Errors on the wire: a gRPC status, with code, hint and parameter in trailing metadata.

The rules are written at the top of engine_v1.proto.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import grpc

from appliance.errors import (
    ApplianceError,
    CapacityError,
    ConflictError,
    NotFoundError,
    RequestError,
    UnavailableError,
    UnsupportedError,
    UsageError,
    VerificationError,
)

ServicerContext = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger(__name__)

_SAFE = " []._-,;:'()/"
_MAX_BYTES = 2000
"""Of one encoded text. A caller's name or place in a schema may be long; metadata has 8 KiB in all,
and a status beyond that is replaced by gRPC's own words."""

_STATUSES: tuple[tuple[type[ApplianceError], grpc.StatusCode], ...] = (
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (CapacityError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (VerificationError, grpc.StatusCode.FAILED_PRECONDITION),
    (UnsupportedError, grpc.StatusCode.FAILED_PRECONDITION),
    (ConflictError, grpc.StatusCode.FAILED_PRECONDITION),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
)


@asynccontextmanager
async def answered(context: ServicerContext) -> AsyncIterator[None]:
    """Turn an error of the body into the status that the protocol promises."""
    try:
        yield
    except ApplianceError as error:
        await _abort(context, error)
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        _log.error("a call failed: %s", describe(error))
        await context.abort(grpc.StatusCode.INTERNAL, f"the engine failed: {describe(error)}")


def describe(error: Exception) -> str:
    """Kind and place of one of our own bugs; not its text, which may quote a caller's content."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return type(error).__name__ + place


def status(error: ApplianceError) -> grpc.StatusCode:
    """The gRPC status of an error."""
    for kind, code in _STATUSES:
        if isinstance(error, kind):
            return code
    return grpc.StatusCode.INTERNAL


def metadata(error: ApplianceError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata of an error; values are percent-encoded UTF-8."""
    pairs = [("appliance-code", error.code), ("appliance-hint", error.hint)]
    if isinstance(error, RequestError) and error.param:
        pairs.append(("appliance-param", _bounded(error.param)))
    return tuple((key, quote(value, safe=_SAFE)) for key, value in pairs if value)


def _bounded(text: str) -> str:
    """As much of the beginning of `text` as a status may carry."""
    while len(quote(text, safe=_SAFE)) > _MAX_BYTES:
        text = text[: len(text) * 3 // 4]
    return text


async def _abort(context: ServicerContext, error: ApplianceError) -> NoReturn:
    await context.abort(status(error), _bounded(error.message), metadata(error))
