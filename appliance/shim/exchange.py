"""One HTTP request and what the layers learn about it on the way in."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from starlette.types import Scope

from appliance.access import KeyInfo
from appliance.audit.event import Outcome, Tokens
from appliance.metering import Price, Reservation, Standing
from appliance.shim.caller_certificate import NO_CERTIFICATE, CallerCertificate

_SLOT = "appliance.exchange"
Dialect = Literal["openai", "anthropic"]
Tier = Literal["default", "flex", "priority"]
Keep = Callable[[msgspec.Struct, Tokens], Awaitable[None]]


def new_request_id() -> str:
    """An id that nobody has; never taken from a caller, because the bill is keyed by it."""
    return f"req_{secrets.token_hex(16)}"


@dataclass(slots=True)
class Exchange:
    """Facts about one request; all but `body` may be logged."""

    request_id: str
    route: str
    """The route's template, or "unknown": never the caller's own path."""
    dialect: Dialect = "openai"
    """Whose errors the caller understands."""
    peer: str = ""
    caller: CallerCertificate = NO_CERTIFICATE
    key: KeyInfo | None = None
    model: str = ""
    """The model the caller asked for, as far as the body was read."""
    batch: bool = False
    """It runs in idle capacity, at the batch price."""
    tier: Tier = "default"
    """As which it is served."""
    priority: int = 0
    """In the engine: the higher is served first."""
    dedicated: bool = False
    """Some of the model is reserved for its key or project, and it may use that."""
    keep: Keep | None = None
    """Awaited with a whole answer and what it is billed for, before its RES is written."""
    price: Price | None = None
    """In force when it was admitted."""
    reservation: Reservation | None = None
    standing: tuple[Standing | None, Standing | None] = (None, None)
    """Limits per minute of requests and of tokens, if the key or its project has any."""
    body: bytes = b""
    """What the caller sent, for the audit log's content modes; nobody else reads it here."""
    admitted: bool = False
    """Its REQ record is durable, so a RES record must follow."""
    outcome: Outcome | None = None
    """What its RES says, as soon as that is durable."""
    status: int = 0
    """Of the answer; 0 until its head is sent."""
    started: float = field(default_factory=time.monotonic)

    @property
    def line(self) -> bool:
        """Whether it is a line of a batch, for which nobody waits."""
        return self.keep is not None

    @property
    def key_id(self) -> str:
        """Id of the authenticated key; empty before authentication."""
        return self.key.id if self.key is not None else ""

    @property
    def owner(self) -> str:
        """Whose content the caller may see: that of its key, and of the keys that it replaced."""
        return (self.key.lineage or self.key.id) if self.key is not None else ""

    @property
    def project(self) -> str:
        """Id of the key's project; empty before authentication."""
        return self.key.project if self.key is not None else ""

    @property
    def cache_namespace(self) -> str:
        """Whose cached prefixes the request may find; nobody's before authentication."""
        return self.key.cache_namespace if self.key is not None else ""

    def attach(self, scope: Scope) -> None:
        """Make this the exchange of `scope`."""
        scope[_SLOT] = self


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that the outermost layer attached to `scope`."""
    exchange = scope[_SLOT]
    assert isinstance(exchange, Exchange)
    return exchange
