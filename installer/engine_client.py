"""The engine daemon as the command line sees it: which models it serves, load, unload.

Owns the channel to the Unix socket and the way back from gRPC statuses to typed errors. Refuses
to know how the engine works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import grpc

from appliance.errors import ApplianceError, UnavailableError
from appliance.pb import engine_v1_pb2 as pb
from appliance.pb.engine_v1_pb2_grpc import EngineStub

ANSWER_SECONDS = 10.0
LOAD_SECONDS = 1800.0


class EngineClient:
    """Calls to one engine. Make it with `connect`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = EngineStub(channel)  # type: ignore[no-untyped-call]

    def models(self) -> list[pb.Model]:
        """What the engine has loaded. Raises UnavailableError."""
        with _typed_errors():
            reply = self._stub.ListModels(pb.ListModelsRequest(), timeout=ANSWER_SECONDS)
        return list(reply.models)

    def load(self, name: str) -> pb.Model:
        """Serve the active version of `name`; returns when it does."""
        with _typed_errors():
            reply: pb.LoadResponse = self._stub.Load(
                pb.LoadRequest(model=name), timeout=LOAD_SECONDS
            )
        return reply.model

    def unload(self, name: str) -> None:
        """Serve `name` no longer; returns when its running sequences have ended."""
        with _typed_errors():
            self._stub.Unload(pb.UnloadRequest(model=name), timeout=LOAD_SECONDS)


@contextmanager
def connect(socket: Path) -> Iterator[EngineClient]:
    """A client of the engine behind `socket`. Connects when it is first used."""
    # The proxy variables are for HTTP clients; this socket never goes through one.
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        yield EngineClient(channel)


@contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        status = error.code()
        if status == grpc.StatusCode.UNAVAILABLE:
            raise UnavailableError(
                "the engine does not answer",
                hint="`appliance status` says whether it runs",
            ) from error
        trailer = {m.key: str(m.value) for m in error.trailing_metadata() or ()}
        raise ApplianceError(
            f"the engine refused: {error.details()}",
            code=trailer.get("appliance-code", status.name.lower()),
            hint=unquote(trailer.get("appliance-hint", "")),
        ) from error
