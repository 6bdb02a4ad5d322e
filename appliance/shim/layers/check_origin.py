"""Refuses requests that were meant for another host, or that a page of another site sends.

A browser inside can be led to this endpoint by a page from anywhere: by its own scripts (`Origin`
then names the page's host), or by a name that was made to point here (`Host` then is that name).
Owns which hosts are this one: this machine by any loopback address, what the operator added, and
the address that the endpoint listens on. Refuses everything else before a key is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import RequestError

_LOCAL = "localhost"
_HOST = re.compile(r"[A-Za-z0-9._:-]+")


class CheckOriginLayer:
    """`hosts`: names and addresses, without ports, by which callers may reach the endpoint.

    `certified` has those of the certificate that is in force.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[str],
        certified: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._certified = certified

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = [value for name, value in scope["headers"] if name == b"host"]
        if len(named) > 1 or not all(self._is_here(_text(value)) for value in named):
            raise RequestError(
                "this endpoint does not answer to that host",
                hint="call it by its own address, or have the name added to api.hosts",
                code="host_not_allowed",
            )
        for name, value in scope["headers"]:
            if name == b"origin" and not self._is_here(_text(value).partition("://")[2]):
                raise RequestError(
                    "pages of other sites may not call this endpoint",
                    hint="call it from a program of your own, or have its host added to api.hosts",
                    code="origin_not_allowed",
                )
        await self._app(scope, receive, send)

    def _is_here(self, authority: str) -> bool:
        host = host_of(authority)
        if host in self._hosts or host == _LOCAL or host in self._certified():
            return True
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return False


def host_of(authority: str) -> str:
    """The host in `host`, `host:port`, `[::1]` or `[::1]:port`, in lower case; empty if neither."""
    if authority.startswith("["):
        host, bracket, port = authority[1:].partition("]")
        port = port.removeprefix(":") if bracket else "?"
    else:
        host, _, port = authority.partition(":")
    good = _HOST.fullmatch(host) and (not port or port.isdecimal())
    return host.lower() if good else ""


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip()
