"""Errors in the API's shape: status, type, code, param, and when to try again.

Owns the one table from error codes to HTTP. The official SDKs turn the status into an exception
class and retry 408, 409, 429 and 5xx twice, unless a header says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from appliance.errors import (
    ApplianceError,
    CapacityError,
    ConflictError,
    NotFoundError,
    RateLimitError,
    RequestError,
    StorageError,
    UnavailableError,
    UnsupportedError,
)
from appliance.shim.exchange import Dialect

INTERNAL = ApplianceError(
    "the request failed inside the appliance",
    hint="its log has the reason under the request id",
    code="internal_error",
)

STATUS_OF_CODE = {
    "invalid_api_key": 401,
    "key_revoked": 401,
    "insufficient_permissions": 403,
    "model_not_allowed": 403,
    "origin_not_allowed": 403,
    "unknown_url": 404,
    "model_not_found": 404,
    "response_not_found": 404,
    "file_not_found": 404,
    "batch_not_found": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "body_too_large": 413,
    "file_too_large": 413,
    "unsupported_media_type": 415,
    "host_not_allowed": 421,
    "too_many_connections": 503,
    "timeout": 504,
}
_STATUS_OF_CLASS: tuple[tuple[type[ApplianceError], int], ...] = (
    (RequestError, 400),
    (UnsupportedError, 400),
    (NotFoundError, 404),
    (ConflictError, 409),
    (CapacityError, 429),
    (UnavailableError, 503),
    (StorageError, 503),
)
AnthropicErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "timeout_error",
]
_ANTHROPIC_TYPES: dict[int, AnthropicErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
_TYPE_OF_STATUS = {429: "rate_limit_error"}
_TYPE_OF_CODE = {"insufficient_quota": "insufficient_quota"}
_RETRY_AFTER_SECONDS = {429: 1, 503: 1}
_NO_RETRY = frozenset(
    {
        *("timeout", "insufficient_quota", "conflict", "storage_full", "too_many_batches"),
        *("invalid_api_key", "key_revoked"),
    }
)
"""Trying again within seconds would fail as well, or compute as long again: a budget comes back
tomorrow, a batch ends in hours. Some clients try a wrong key again for minutes."""
_MOST = 600
"""Characters of a message: it may quote a name that a caller made very long."""
_CLOSING = frozenset({"body_timeout", "body_too_large", "file_too_large"})
"""The rest of the body is not read, so the connection cannot be used again."""


class MethodError(RequestError):
    """The path exists, but not for this method; `allowed` are those it exists for."""

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        super().__init__(
            f"{method} is not possible here", hint=f"use {allowed[0]}", code="method_not_allowed"
        )
        self.allowed = allowed


class ErrorBody(msgspec.Struct, frozen=True):
    """The inner object of every error."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorDocument(msgspec.Struct, frozen=True):
    """What every error looks like, as a body and inside a stream."""

    error: ErrorBody


class AnthropicErrorDetails(msgspec.Struct, frozen=True):
    error_code: str


class AnthropicErrorBody(msgspec.Struct, frozen=True):
    """The inner object of an error on Anthropic's routes: the message names the parameter."""

    type: AnthropicErrorType
    message: str
    details: AnthropicErrorDetails


class AnthropicError(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """What an error looks like on Anthropic's routes, as a body and inside a stream."""

    error: AnthropicErrorBody
    request_id: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error, ready to be sent."""

    status: int
    message: str
    document: ErrorDocument | AnthropicError
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(self.document)


def status_of(error: ApplianceError) -> int:
    """The HTTP status of `error`."""
    if error.code in STATUS_OF_CODE:
        return STATUS_OF_CODE[error.code]
    return next((status for kind, status in _STATUS_OF_CLASS if isinstance(error, kind)), 500)


def refusal(error: ApplianceError, dialect: Dialect = "openai", request_id: str = "") -> Refusal:
    """`error` in the shape of the caller's API."""
    status = status_of(error)
    text = error.message if len(error.message) <= _MOST else f"{error.message[:_MOST]}…"
    message = f"{text}; {error.hint}" if error.hint else text
    document: ErrorDocument | AnthropicError
    if dialect == "anthropic":
        document = _anthropic(error, status, message, request_id)
    else:
        fallback = "server_error" if status >= 500 else "invalid_request_error"
        kind = _TYPE_OF_CODE.get(error.code) or _TYPE_OF_STATUS.get(status, fallback)
        document = ErrorDocument(ErrorBody(message, kind, _param(error), error.code))
    return Refusal(status, message, document, tuple(_headers(status, error)))


def _param(error: ApplianceError) -> str | None:
    return error.param if isinstance(error, RequestError) else None


def _anthropic(error: ApplianceError, status: int, message: str, request_id: str) -> AnthropicError:
    param = _param(error)
    fallback: AnthropicErrorType = "api_error" if status >= 500 else "invalid_request_error"
    named = message if param is None or f"`{param}`" in message else f"`{param}`: {message}"
    kind = _ANTHROPIC_TYPES.get(status, fallback)
    return AnthropicError(
        AnthropicErrorBody(kind, named, AnthropicErrorDetails(error.code)), request_id
    )


def _headers(status: int, error: ApplianceError) -> list[tuple[bytes, bytes]]:
    code = error.code
    headers = []
    if code in _NO_RETRY or (isinstance(error, RateLimitError) and error.wait_ms is None):
        headers.append((b"x-should-retry", b"false"))
    elif isinstance(error, RateLimitError) and error.wait_ms is not None:
        headers.append((b"retry-after", str(-(-error.wait_ms // 1000)).encode()))
        headers.append((b"retry-after-ms", str(error.wait_ms).encode()))
    elif status in _RETRY_AFTER_SECONDS:
        headers.append((b"retry-after", str(_RETRY_AFTER_SECONDS[status]).encode()))
    if code in _CLOSING:
        headers.append((b"connection", b"close"))
    if isinstance(error, MethodError):
        headers.append((b"allow", ", ".join(error.allowed).encode("ascii")))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
