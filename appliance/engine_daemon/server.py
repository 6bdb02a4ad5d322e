"""The daemon's life: lock, socket, health, loading, and a stop that lets answers end.

Owns the Unix socket. Refuses a path that the kernel cannot take, and a second daemon on the
same one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from urllib.parse import quote

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer  # public as health.aio, which has no types
from grpc_health.v1.health_pb2 import HealthCheckResponse

from appliance.config import Config
from appliance.engine_daemon.malformed import Registrar
from appliance.engine_daemon.registry import ModelRegistry
from appliance.engine_daemon.service import EngineService
from appliance.engine_daemon.watchdog import tell
from appliance.errors import ConfigError, StorageError
from appliance.fsops import exclusive_lock, make_dirs
from appliance.pb import engine_v1_pb2_grpc as pb_grpc
from appliance.service import notify_ready, notify_stopping

MAX_SOCKET_PATH = 107
"""sockaddr_un holds 108 bytes, the terminating one included; unix(7)."""
SOCKET_MODE = 0o660
DRAIN_SECONDS = 20.0
"""How long a stop waits for answers under way before it cancels them."""
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_log = logging.getLogger(__name__)


class EngineServer:
    """One daemon. `start`, then `stop`; both on the event loop."""

    def __init__(self, config: Config, *, drain_seconds: float = DRAIN_SECONDS) -> None:
        self._socket = config.layout.engine_socket
        self._drain_seconds = drain_seconds
        check_socket_path(self._socket)
        self._health = HealthServicer()
        self._registry = ModelRegistry(config, self._report)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                # No pings that measure the way: it is a socket of this machine.
                ("grpc.http2.bdp_probe", 0),
            ]
        )
        service, registrar = EngineService(self._registry), Registrar(self._server)
        pb_grpc.add_EngineServicer_to_server(service, registrar)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registrar)

    async def start(self) -> None:
        """Serve on the socket, then load the active models. Raises StorageError."""
        self._bind()
        # Before anybody can ask: what is only not loaded yet is not unknown.
        await self._registry.expect_active()
        await self._server.start()
        self._socket.chmod(SOCKET_MODE)
        await self._health.set("", HealthCheckResponse.SERVING)
        _log.info("listening on %s", self._socket)
        await self._registry.load_active()

    async def tell_alive(self) -> None:
        """Tell the supervisor that the daemon lives, until cancelled. After READY=1."""
        self._registry.watched = True
        await tell(self._registry)

    async def stop(self) -> None:
        """Refuse new calls, let those under way end, cancel what takes too long."""
        self._registry.stop_admitting()
        await self._health.enter_graceful_shutdown()
        await self._registry.finish(self._drain_seconds)
        await self._server.stop(grace=1.0)
        await self._registry.close()
        self._socket.unlink(missing_ok=True)

    async def _report(self, model: str, serving: bool) -> None:
        status = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        await self._health.set(model, status)

    def _bind(self) -> None:
        # The lock says that no daemon lives here, so a socket that exists was left by a dead one.
        self._socket.unlink(missing_ok=True)
        # Born with its final mode: nobody can connect between bind and chmod.
        before = os.umask(0o777 & ~SOCKET_MODE)
        try:
            self._server.add_insecure_port(f"unix:{quote(str(self._socket))}")
        except RuntimeError as error:
            raise StorageError(
                f"the engine cannot listen on {self._socket}: {error}",
                hint="check the directory's owner and mode",
            ) from None
        finally:
            os.umask(before)


def check_socket_path(path: Path) -> None:
    """Raise ConfigError if the kernel cannot bind this path."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise ConfigError(
            f"the socket's path is {length} bytes long, more than {MAX_SOCKET_PATH}: {path}",
            hint="install into a shorter prefix",
        )


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Run the daemon until `stop` is set. Raises LockedError if another one has the socket."""
    socket = config.layout.engine_socket
    check_socket_path(socket)
    make_dirs(socket.parent, mode=0o750)
    with exclusive_lock(socket.with_suffix(".lock")):
        server = EngineServer(config)
        starting = asyncio.create_task(server.start())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                notify_ready()
                alive = asyncio.create_task(server.tell_alive())
                await stopping
                alive.cancel()
        finally:
            notify_stopping()
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            await server.stop()
