"""Where connections arrive that have to speak TLS: who may come in, how many, and what is noted.

Owns what all of them share: the certificate in force, the networks that may connect, the count of
those that are not HTTP's yet, and the record of a caller whose certificate is missing or not
good. Refuses nothing by itself once a handshake is complete: that is HTTP's part.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from ipaddress import ip_address
from typing import Any

from appliance.errors import ApplianceError
from appliance.shim.exchange import Exchange, new_request_id
from appliance.shim.http_protocol import CONNECTIONS, BoundedHttpProtocol
from appliance.shim.services import Services
from appliance.shim.tls_connection import TlsConnection
from appliance.tls.contexts import ServerContexts

SPARE = 32
"""Connections above HTTP's own bound: those whose callers are told that there are too many."""
_log = logging.getLogger(__name__)


class TlsFront:
    """Makes the protocol of each connection: uvicorn's `http`. One event loop owns it."""

    def __init__(self, contexts: ServerContexts, services: Services) -> None:
        self.contexts = contexts
        self._networks = services.settings.networks
        self._metrics = services.metrics
        self._accounting = services.accounting
        services.metrics.shows_certificate(lambda: contexts.certificate.not_after)
        self._greeting: set[TlsConnection] = set()
        self._notes: set[asyncio.Task[None]] = set()

    def __call__(self, **given: Any) -> TlsConnection:  # noqa: ANN401
        """What uvicorn asks for each connection."""
        return TlsConnection(self, BoundedHttpProtocol(**given))

    def certified(self) -> Collection[str]:
        """Names and addresses of the certificate in force."""
        certificate = self.contexts.certificate
        return (*certificate.names, *certificate.addresses)

    def arrived(self, connection: TlsConnection, peer: str, here: str, established: int) -> bool:
        """Count a connection that begins its handshake; false if it may not."""
        if not self._is_welcome(peer, here):
            self._metrics.handshake_failed("network_not_allowed")
            return False
        if len(self._greeting) + established >= CONNECTIONS + SPARE:
            self._metrics.handshake_failed("too_many_connections")
            return False
        self._greeting.add(connection)
        return True

    def greeted(self, connection: TlsConnection) -> None:
        """It is HTTP's now, or gone. May be said more than once."""
        self._greeting.discard(connection)

    def failed(self, peer: str, code: str) -> None:
        """A handshake was refused; what concerns a caller's certificate is recorded."""
        self._metrics.handshake_failed(code)
        if code.startswith("client_certificate"):
            task = asyncio.get_running_loop().create_task(self._note(peer, code))
            self._notes.add(task)
            task.add_done_callback(self._notes.discard)

    async def close(self) -> None:
        """Cut off who has not finished its handshake; return when all is recorded."""
        for connection in list(self._greeting):
            connection.abort()
        await asyncio.gather(*self._notes)

    def _is_welcome(self, peer: str, here: str) -> bool:
        """This machine always is."""
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return (
            not self._networks
            or address.is_loopback
            or peer == here
            or any(address in network for network in self._networks)
        )

    async def _note(self, peer: str, code: str) -> None:
        """It has no route and no status: HTTP never began."""
        try:
            exchange = Exchange(new_request_id(), "unknown", peer=peer)
            await self._accounting.reject(exchange, status=0, code=code)
        except ApplianceError as error:
            _log.error("%s from %s could not be recorded: %s", code, peer, error.message)
