"""The way to a gRPC server behind a Unix socket.

Owns connecting: when a call is made and there is no connection, so again by itself after the server
was away. Calls that wait for it fail together if there is nobody. Refuses to repeat a call: only
the caller knows whether that is right.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from weakref import WeakSet

from appliance.shim.rpc.call import MOST_BYTES, Call
from appliance.shim.rpc.connection import Connection
from appliance.shim.rpc.status import RpcError, Status, lost


class Channel:
    """Lives on the event loop. `ahead` names the method of which a call is opened ahead."""

    def __init__(self, socket: Path, ahead: str = "") -> None:
        self._socket = socket
        self._ahead = ahead
        self._connection: Connection | None = None
        self._connections: WeakSet[Connection] = WeakSet()
        """With those that take no more calls and still have some."""
        self._pending: list[Call] = []
        self._connecting: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the server is there, as far as the socket tells."""
        return self._connection is not None

    def call(self, path: str, request: bytes, seconds: float | None = None) -> Call:
        """Call the method `path`, now; to be over within so many seconds if they are given."""
        call = Call(path, request, seconds)
        if len(request) > MOST_BYTES:
            call.end(RpcError(Status.RESOURCE_EXHAUSTED, "message larger than max"))
        elif self._connection is not None:
            self._connection.start(call)
        else:
            self._pending.append(call)
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._connect())
        return call

    async def close(self) -> None:
        """Calls that still run are cancelled."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        self._fail_pending(RpcError(Status.CANCELLED, "the channel is closed"))
        for connection in list(self._connections):
            connection.close()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_unix_connection(
                lambda: Connection(self._retired, self._ahead), str(self._socket)
            )
        except OSError as error:
            self._fail_pending(lost(str(error)))
        else:
            self._connections.add(connection)
            self._connection = connection if connection.usable else None
            pending, self._pending = self._pending, []
            for call in pending:
                connection.start(call)
        finally:
            self._connecting = None

    def _fail_pending(self, error: RpcError) -> None:
        pending, self._pending = self._pending, []
        for call in pending:
            call.end(error)

    def _retired(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None
