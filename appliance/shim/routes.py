"""Which operation is answered by what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import RequestError
from appliance.shim.administration.routes import administration_apps
from appliance.shim.api.batches import (
    BatchEndpoint,
    BatchesEndpoint,
    CancelBatchEndpoint,
    CreateBatchEndpoint,
)
from appliance.shim.api.chat import ChatEndpoint
from appliance.shim.api.completions import CompletionsEndpoint
from appliance.shim.api.embeddings import EmbeddingsEndpoint
from appliance.shim.api.files import (
    CreateFileEndpoint,
    DeleteFileEndpoint,
    FileContentEndpoint,
    FileEndpoint,
    FilesEndpoint,
)
from appliance.shim.api.health import HealthEndpoint, ReadyEndpoint
from appliance.shim.api.messages import CountTokensEndpoint, MessagesEndpoint
from appliance.shim.api.metrics import MetricsEndpoint
from appliance.shim.api.models import ModelEndpoint, ModelsEndpoint
from appliance.shim.api.reference import OpenApiEndpoint, ReferenceEndpoint
from appliance.shim.api.rerank import RerankEndpoint, ScoreEndpoint
from appliance.shim.api.responses import ResponsesEndpoint
from appliance.shim.api.stored_responses import (
    CancelResponseEndpoint,
    DeleteResponseEndpoint,
    InputItemsEndpoint,
    ResponseEndpoint,
)
from appliance.shim.api.tokens import DetokenizeEndpoint, TokenizeEndpoint
from appliance.shim.operation import Method
from appliance.shim.operations import OPERATIONS, pattern_of
from appliance.shim.refusals import MethodError
from appliance.shim.services import Services


def router(services: Services, audit_available: Callable[[], bool]) -> ASGIApp:
    """The application inside the layers. Raises RequestError for an unknown path or method."""
    apps = _apps(services, audit_available)
    assert apps.keys() == {(o.method, o.path) for o in OPERATIONS}, "the table names them all"
    of_path: dict[str, dict[str, ASGIApp]] = defaultdict(dict)
    for operation in OPERATIONS:
        app = apps[operation.method, operation.path]
        of_path[operation.path][operation.method] = app
        if operation.method == "GET":
            of_path[operation.path]["HEAD"] = app
    return Router(
        [Route(pattern_of(path), _Methods(methods)) for path, methods in of_path.items()],
        redirect_slashes=False,
        default=_not_found,
    )


def batch_endpoints(services: Services) -> dict[str, ASGIApp]:
    """What a line of a batch may ask for, by path."""
    return {
        "/v1/chat/completions": ChatEndpoint(services),
        "/v1/responses": ResponsesEndpoint(services),
        "/v1/completions": CompletionsEndpoint(services),
        "/v1/embeddings": EmbeddingsEndpoint(services),
        "/v1/rerank": RerankEndpoint(services),
        "/v1/score": ScoreEndpoint(services),
    }


def _apps(
    services: Services, audit_available: Callable[[], bool]
) -> dict[tuple[Method, str], ASGIApp]:
    engine = services.engine
    return {
        **{("POST", path): endpoint for path, endpoint in batch_endpoints(services).items()},
        ("GET", "/v1/responses/{response_id}"): ResponseEndpoint(services),
        ("DELETE", "/v1/responses/{response_id}"): DeleteResponseEndpoint(services),
        ("POST", "/v1/responses/{response_id}/cancel"): CancelResponseEndpoint(services),
        ("GET", "/v1/responses/{response_id}/input_items"): InputItemsEndpoint(services),
        ("POST", "/v1/messages"): MessagesEndpoint(services),
        ("POST", "/v1/messages/count_tokens"): CountTokensEndpoint(services),
        ("POST", "/v2/rerank"): RerankEndpoint(services),
        ("POST", "/v1/files"): CreateFileEndpoint(services),
        ("GET", "/v1/files"): FilesEndpoint(services),
        ("GET", "/v1/files/{file_id}"): FileEndpoint(services),
        ("DELETE", "/v1/files/{file_id}"): DeleteFileEndpoint(services),
        ("GET", "/v1/files/{file_id}/content"): FileContentEndpoint(services),
        ("POST", "/v1/batches"): CreateBatchEndpoint(services),
        ("GET", "/v1/batches"): BatchesEndpoint(services),
        ("GET", "/v1/batches/{batch_id}"): BatchEndpoint(services),
        ("POST", "/v1/batches/{batch_id}/cancel"): CancelBatchEndpoint(services),
        ("POST", "/tokenize"): TokenizeEndpoint(services),
        ("POST", "/detokenize"): DetokenizeEndpoint(services),
        ("GET", "/v1/models"): ModelsEndpoint(engine),
        ("GET", "/v1/models/{model}"): ModelEndpoint(engine),
        **administration_apps(services),
        ("GET", "/health"): HealthEndpoint(engine, audit_available),
        ("GET", "/ready"): ReadyEndpoint(engine, audit_available),
        ("GET", "/openapi.json"): OpenApiEndpoint(),
        ("GET", "/docs"): ReferenceEndpoint(),
        ("GET", "/metrics"): MetricsEndpoint(engine, services.metrics),
    }


class _Methods:
    """Hands a request to the app of its method."""

    def __init__(self, apps: Mapping[str, ASGIApp]) -> None:
        self._apps = apps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._apps.get(scope["method"])
        if app is None:
            raise MethodError(scope["method"], tuple(self._apps))
        await app(scope, receive, send)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise RequestError(
        f"there is nothing at {scope['method']} {scope['path']}",
        hint=_meant(scope["path"]),
        code="unknown_url",
    )


def _meant(path: str) -> str:
    """What helps: mostly a base URL lacks its /v1, or has it twice."""
    meant = path.removeprefix("/v1") if path.startswith("/v1/v1/") else f"/v1{path}"
    if any(operation.path == meant for operation in OPERATIONS):
        return f"there is {meant}: let the base URL end with /v1, once"
    return "GET /docs lists what there is"
