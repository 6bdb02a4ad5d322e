"""One HTTP request and what the layers learn about it on the way in."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from starlette.types import Scope

from appliance.access import KeyInfo
from appliance.metering import Price, Reservation, Standing

_SLOT = "appliance.exchange"
Dialect = Literal["openai", "anthropic"]


@dataclass(slots=True)
class Exchange:
    """Facts about one request; all but `body` may be logged."""

    request_id: str
    route: str
    """The route's template, or "unknown": never the caller's own path."""
    dialect: Dialect = "openai"
    """Whose errors the caller understands."""
    peer: str = ""
    key: KeyInfo | None = None
    model: str = ""
    """The model the caller asked for, as far as the body was read."""
    batch: bool = False
    """It runs in idle capacity, at the batch price."""
    price: Price | None = None
    """In force when it was admitted."""
    reservation: Reservation | None = None
    standing: tuple[Standing | None, Standing | None] = (None, None)
    """Limits per minute of requests and of tokens, if the key or its project has any."""
    body: bytes = b""
    """What the caller sent, for the audit log's content modes; nobody else reads it here."""
    admitted: bool = False
    """Its REQ record is durable, so a RES record must follow."""
    started: float = field(default_factory=time.monotonic)

    @property
    def key_id(self) -> str:
        """Id of the authenticated key; empty before authentication."""
        return self.key.id if self.key is not None else ""

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
