"""The shim as a running server: opens what it needs, listens, and stops without losing anybody.

Owns the order. Start: audit log (orphans closed), usage (caught up), limits (seeded from it),
then the port; ready means that requests are answered. Stop: new requests are turned away, running
ones get their time, then an error event; each has its RES before the port and, last, the log are
closed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import uvicorn

from appliance.access import KeyStore
from appliance.audit import AuditLog, AuditWriter
from appliance.audit.content import ContentKeeper
from appliance.config import ApiSettings, Config, check_listening
from appliance.errors import UnavailableError
from appliance.metering import NOBODY, Clock, Limiter, Meter, PriceTable, catch_up
from appliance.shim.accounting import Accounting
from appliance.shim.admission import Admission
from appliance.shim.app import build
from appliance.shim.batches.batches import Batches, kept_files
from appliance.shim.batches.gate import Gate
from appliance.shim.batches.line_caller import LineCaller
from appliance.shim.batches.office import Office
from appliance.shim.disk_collector import DiskCollector, disks_seen
from appliance.shim.drain import Drain
from appliance.shim.engine_client import EngineClient
from appliance.shim.http_protocol import BoundedHttpProtocol
from appliance.shim.metrics import Metrics
from appliance.shim.response_recovery import kept_responses
from appliance.shim.retention import retention
from appliance.shim.revocation import Revocations
from appliance.shim.routes import batch_endpoints
from appliance.shim.services import Services
from appliance.shim.settler import Settler
from appliance.shim.suspects import Suspects
from appliance.shim.tls_front import TlsFront
from appliance.tls.contexts import ServerContexts
from appliance.tls.files import TlsFiles

_BACKLOG = 1024
_IP_FREEBIND = 15
_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection, so that they close it and not we under them."""
_log = logging.getLogger(__name__)


async def serve(
    config: Config,
    *,
    stop: asyncio.Event,
    ready: Callable[[], object],
    clock: Clock | None = None,
) -> None:
    """Serve until `stop` is set; calls `ready` once requests are answered.

    Limits go by `clock`, the machine's by default.

    Raises ConfigError if others could reach it in clear, NotFoundError or VerificationError for
    the files of TLS, UnavailableError if the port is taken, and the errors of the audit log.
    """
    check_listening(config.api)
    contexts = _contexts(config)
    async with _services(config, clock) as (services, writer):
        listener = _listen(config.api)
        _log.info("listening on %s", config.base_url)
        front = TlsFront(contexts, services) if contexts is not None else None
        certified = front.certified if front is not None else frozenset
        server = _Server(
            uvicorn.Config(
                build(services, lambda: writer.available, certified),
                # Uvicorn calls it for each connection, class or not.
                http=front or BoundedHttpProtocol,  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            ),
            ready,
            front,
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        _log.info("stopping: %d requests are running", services.drain.inside)
        await services.drain.close(config.api.drain_seconds)
        server.should_exit = True
        await serving


@asynccontextmanager
async def _services(
    config: Config, clock: Clock | None
) -> AsyncIterator[tuple[Services, AuditWriter]]:
    layout = config.layout
    with (
        AuditLog.open(layout.audit, layout.audit_key, config.audit) as log,
        KeyStore(layout.keys_db) as keys,
        PriceTable(layout.prices_db) as prices,
    ):
        closed = log.recover()
        if closed:
            _log.warning("%d requests were cut off when the endpoint last ended", closed)
        meter = Meter(layout.usage_db)
        catch_up(meter, layout.audit)
        limiter = Limiter(clock)
        known = keys.list()
        lineages = {key.id: key.lineage for key in known}
        own = {key.id for key in known if key.of_node}
        spent = meter.spent(limiter.seed_since)
        of_nobody = (replace(row, project=NOBODY) if row.key_id in own else row for row in spent)
        limiter.seed(of_nobody, lineages)
        drain = Drain()
        metrics = Metrics(lambda: drain.inside)
        metrics.registry.register(DiskCollector(disks_seen(layout)))
        settler = Settler(meter)
        engine = EngineClient(layout.engine_socket)
        content = ContentKeeper(layout, config.audit)
        async with (
            AuditWriter(log, config.audit) as writer,
            retention(config, log),
            kept_responses(config, lineages) as responses,
            kept_files(config, meter.outcome) as batches,
        ):
            accounting = Accounting(writer, keys, settler, metrics, content)
            revocations = Revocations(keys)
            services = Services(
                config,
                engine,
                keys,
                accounting,
                metrics,
                drain,
                revocations,
                Admission(engine, limiter, prices),
                Suspects(engine.serving),
                responses=responses,
                batches=batches,
            )
            if batches is not None:
                await batches.open(_office(services, batches))
            try:
                yield services, writer
            finally:
                if batches is not None:
                    await batches.close()
                await revocations.close()
                await engine.close()
                await accounting.close()
                await settler.close()


def _office(services: Services, batches: Batches) -> Office:
    """Where `batches` are worked on."""
    config = services.config
    return Office(
        batches.files,
        batches.batches,
        Gate(services.drain),
        LineCaller(batch_endpoints(services), services.accounting, services.keys),
        services.engine,
        services.metrics,
        config.api.max_body_bytes,
        batches.file_seconds,
    )


def _contexts(config: Config) -> ServerContexts | None:
    api = config.api
    if not api.tls:
        return None
    files = TlsFiles.of(config.layout)
    return ServerContexts(files, client_certificates=api.client_certificates)


def _listen(settings: ApiSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.listen_host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if not settings.is_loopback:
            # Nothing waits for a network, so the address may come after us. ip(7); for both
            # families, as for IPv6 the kernel asks the same flag.
            listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listener.bind((settings.listen_host, settings.listen_port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"{settings.listen_host} port {settings.listen_port} cannot be used: {error.strerror}",
            hint="stop what listens there, or set another api.listen_port",
        ) from error
    return listener


class _Server(uvicorn.Server):
    """Uvicorn that says when it answers, and leaves signals alone: the order of a stop is ours."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], object], front: TlsFront | None
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._front = front

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._front is not None:
            await self._front.close()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
