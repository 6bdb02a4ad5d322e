"""/v1/models: what the engine serves now, in the shape of the API that the caller speaks."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.errors import NotFoundError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.answer import send_document
from appliance.shim.engine_client import EngineClient
from appliance.shim.exchange import exchange_of
from appliance.shim.serving import serving
from appliance.shim.wire.anthropic_models import ModelInfo, ModelsQuery, NoQuery, info, page
from appliance.shim.wire.anthropic_version import check_version
from appliance.shim.wire.decode import decode_query

_CHAT = "chat"
"""The kind of models that generate."""


class ModelOut(msgspec.Struct, frozen=True):
    """A model; the fields after `object` are extensions."""

    id: str
    created: int
    owned_by: str = "appliance"
    object: Literal["model"] = "model"
    version: str = ""
    kind: str = ""
    context_length: int = 0
    bundle_digest: str = ""
    base: str = ""
    """Of an adapter: the model that it is added to."""
    dimensions: int = 0
    """Of an embedding model: numbers in a vector."""
    supports_tools: bool = False
    """It was trained to call functions."""
    supports_reasoning: bool = False
    """It can think apart from its answer."""
    supports_images: bool = False
    """It reads images among the text."""


class ModelList(msgspec.Struct, frozen=True):
    data: list[ModelOut]
    object: Literal["list"] = "list"


class ModelsEndpoint:
    """GET /v1/models."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        served = _open_to(scope, serving(await self._engine.models()))
        if exchange_of(scope).dialect == "anthropic":
            check_version(scope)
            query = decode_query(scope, ModelsQuery)
            await send_document(send, page(_for_messages(served), query))
            return
        await send_document(send, ModelList([_out(model) for model in served]))


class ModelEndpoint:
    """GET /v1/models/{model}."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = await served(self._engine, scope["path_params"]["model"])
        if not _open_to(scope, [model]):
            raise _not_served(model.name)
        if exchange_of(scope).dialect == "anthropic":
            check_version(scope)
            decode_query(scope, NoQuery)
            if not (found := _for_messages([model])):
                raise _not_served(model.name)
            await send_document(send, found[0])
            return
        await send_document(send, _out(model))


async def served(engine: EngineClient, name: str) -> pb.Model:
    """The model that takes requests as `name`. Raises NotFoundError."""
    for model in serving(await engine.models()):
        if model.name == name:
            return model
    raise _not_served(name)


def _not_served(name: str) -> NotFoundError:
    return NotFoundError(
        f"the model {name!r} is not served here",
        hint="GET /v1/models lists those that are",
        code="model_not_found",
    )


def _open_to(scope: Scope, models: list[pb.Model]) -> list[pb.Model]:
    """Those of `models` that the caller's key may use."""
    key = exchange_of(scope).key
    return [model for model in models if key is None or key.may_use(model.name)]


def _for_messages(models: list[pb.Model]) -> list[ModelInfo]:
    """Those that /v1/messages may name."""
    return [
        info(model.name, model.created, model.context_length)
        for model in models
        if model.kind == _CHAT
    ]


def _out(model: pb.Model) -> ModelOut:
    return ModelOut(
        id=model.name,
        created=model.created,
        version=model.version,
        kind=model.kind,
        context_length=model.context_length,
        bundle_digest=model.bundle_digest,
        base=model.base_model,
        dimensions=model.dimensions,
        supports_tools=model.supports_tools,
        supports_reasoning=model.supports_thinking,
        supports_images=model.supports_images,
    )
