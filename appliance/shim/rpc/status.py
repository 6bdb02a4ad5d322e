"""How a call ended, in gRPC's words."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from urllib.parse import unquote


class Status(IntEnum):
    """The statuses of gRPC ("Status codes and their use in gRPC")."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call that did not end well."""

    def __init__(
        self, status: Status, message: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status.name}: {message}")
        self.status = status
        self.message = message
        self.metadata: Mapping[str, str] = metadata or {}
        """What came behind the answer; keys in lower case, values as they were sent."""


def ended(trailers: Mapping[str, str]) -> RpcError | None:
    """What the last headers of an answer say; None: all is well."""
    known = trailers.get("grpc-status", "")
    if known == "0":
        return None
    try:
        status = Status(int(known))
    except ValueError:
        status = Status.UNKNOWN
    return RpcError(status, unquote(trailers.get("grpc-message", "")), trailers)


_OF_RESET = {
    0x7: Status.UNAVAILABLE,  # REFUSED_STREAM: nothing was done
    0x8: Status.CANCELLED,
    0xB: Status.RESOURCE_EXHAUSTED,  # ENHANCE_YOUR_CALM
    0xC: Status.PERMISSION_DENIED,  # INADEQUATE_SECURITY
}


def reset(code: int) -> RpcError:
    """What a stream that the other side reset with an HTTP/2 error code means for its call."""
    return RpcError(_OF_RESET.get(code, Status.INTERNAL), f"the stream was reset with {code:#x}")


def lost(why: str = "the connection ended") -> RpcError:
    """There is no connection, or none any more."""
    return RpcError(Status.UNAVAILABLE, why)
