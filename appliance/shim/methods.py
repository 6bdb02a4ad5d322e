"""One path, several methods."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import RequestError


class Methods:
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
