"""Which path is answered by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import RequestError
from appliance.shim.administration.paths import administration_route_of
from appliance.shim.administration.routes import administration_apps
from appliance.shim.api.chat import ChatEndpoint
from appliance.shim.api.completions import CompletionsEndpoint
from appliance.shim.api.embeddings import EmbeddingsEndpoint
from appliance.shim.api.health import HealthEndpoint
from appliance.shim.api.metrics import MetricsEndpoint
from appliance.shim.api.models import ModelEndpoint, ModelsEndpoint
from appliance.shim.services import Services

PUBLIC = frozenset({"/health", "/metrics"})
"""Routes that need no key."""
_MODEL = "/v1/models/"
_FIXED = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", *PUBLIC}
)


def route_of(path: str) -> str:
    """The name under which `path` is counted and recorded: never the caller's own words."""
    if path in _FIXED:
        return path
    if path.startswith(_MODEL):
        return f"{_MODEL}{{model}}"
    return administration_route_of(path) or "unknown"


def router(services: Services, audit_available: Callable[[], bool]) -> ASGIApp:
    """The application inside the layers. Raises RequestError for an unknown path or method."""
    engine = services.engine
    return Router(
        [
            _post("/v1/chat/completions", ChatEndpoint(services)),
            _post("/v1/completions", CompletionsEndpoint(services)),
            _post("/v1/embeddings", EmbeddingsEndpoint(services)),
            _get("/v1/models", ModelsEndpoint(engine)),
            _get("/v1/models/{model:path}", ModelEndpoint(engine)),
            _get("/health", HealthEndpoint(engine, audit_available)),
            _get("/metrics", MetricsEndpoint(engine, services.metrics)),
            *(Route(path, _Methods(apps)) for path, apps in administration_apps(services).items()),
        ],
        redirect_slashes=False,
        default=_not_found,
    )


def _post(path: str, app: ASGIApp) -> Route:
    return Route(path, _Methods({"POST": app}))


def _get(path: str, app: ASGIApp) -> Route:
    return Route(path, _Methods({"GET": app, "HEAD": app}))


class _Methods:
    """Hands a request to the app of its method."""

    def __init__(self, apps: Mapping[str, ASGIApp]) -> None:
        self._apps = apps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._apps.get(scope["method"])
        if app is None:
            raise RequestError(
                f"{scope['method']} is not possible here",
                hint=f"use {next(iter(self._apps))}",
                code="method_not_allowed",
            )
        await app(scope, receive, send)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise RequestError(
        f"there is nothing at {scope['method']} {scope['path']}",
        hint="docs/api.md lists what there is",
        code="unknown_url",
    )
