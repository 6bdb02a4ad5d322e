"""GET /v1/organization/audit_logs: what was administered, newest first, from this node's log.

Owns the mapping of ADMIN records to OpenAI's event types. Records that have none (models,
requests, the log's own) are not shown: the log itself and `appliance audit verify` have them.
Reads backwards, so the newest entries cost little however long the log is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType, field
from starlette.types import Receive, Scope, Send

from appliance.audit import read_events
from appliance.audit.event import Admin, unix_seconds
from appliance.audit.state import read_state
from appliance.errors import RequestError
from appliance.shim.accounting import KEY_ACTOR
from appliance.shim.administration.pages import LIMIT, MOST, page
from appliance.shim.administration.query import Query
from appliance.shim.answer import send_document

_WINDOW = 4096
"""Records read at a time."""
_PREFIX = "audit_log-"
_LATEST = 1 << 40
_TYPES = {
    "keys.create": "api_key.created",
    "keys.rotate": "api_key.updated",
    "keys.revoke": "api_key.deleted",
    "keys.limit": "rate_limit.updated",
    "keys.reserve": "rate_limit.updated",
    "projects.create": "project.created",
    "projects.cache": "project.updated",
    "projects.archive": "project.archived",
    "projects.limit": "rate_limit.updated",
    "projects.reserve": "rate_limit.updated",
}
_BOUNDS: dict[str, Callable[[int, int], bool]] = {
    "gt": lambda at, bound: at > bound,
    "gte": lambda at, bound: at >= bound,
    "lt": lambda at, bound: at < bound,
    "lte": lambda at, bound: at <= bound,
}


class User(msgspec.Struct, frozen=True):
    id: str


class Session(msgspec.Struct, frozen=True):
    user: User


class ActorKey(msgspec.Struct, frozen=True):
    id: str
    type: Literal["user"] = "user"


class Actor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A login name on the node, or an admin key of this API."""

    type: Literal["session", "api_key"]
    session: Session | None = None
    api_key: ActorKey | None = None


class Target(msgspec.Struct, frozen=True):
    """What was changed."""

    id: str


class AuditLogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One event; the field named like its type says what it was about."""

    id: str
    type: str
    effective_at: int
    actor: Actor
    api_key_created: Target | UnsetType = field(default=UNSET, name="api_key.created")
    api_key_updated: Target | UnsetType = field(default=UNSET, name="api_key.updated")
    api_key_deleted: Target | UnsetType = field(default=UNSET, name="api_key.deleted")
    rate_limit_updated: Target | UnsetType = field(default=UNSET, name="rate_limit.updated")
    project_created: Target | UnsetType = field(default=UNSET, name="project.created")
    project_updated: Target | UnsetType = field(default=UNSET, name="project.updated")
    project_archived: Target | UnsetType = field(default=UNSET, name="project.archived")


class AuditLogsEndpoint:
    """The one route."""

    def __init__(self, audit: Path) -> None:
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = _Wanted(scope)
        shown, more = await asyncio.to_thread(wanted.entries, self._audit)
        await send_document(send, page(shown, [entry.id for entry in shown], more=more))


class _Wanted:
    """The parameters of a request, and the entries that they let through."""

    def __init__(self, scope: Scope) -> None:
        bounds = [f"effective_at[{name}]" for name in _BOUNDS]
        known = ("limit", "after", "before", "event_types", "actor_ids", "resource_ids", *bounds)
        unsupported = {
            "actor_emails": "the log has no addresses",
            "project_ids": "the log names what was changed: use resource_ids",
        }
        query = Query(scope, known, unsupported)
        self._limit = query.number("limit", LIMIT, 1, MOST)
        self._types = query.texts("event_types")
        self._actors = query.texts("actor_ids")
        self._targets = query.texts("resource_ids")
        self._bounds = [
            (holds, query.number(f"effective_at[{name}]", None, 0, _LATEST))
            for name, holds in _BOUNDS.items()
            if query.text(f"effective_at[{name}]") is not None
        ]
        # Newest first: `after` goes back in time, `before` comes forward.
        self._below = _number(query, "after")
        self._above = _number(query, "before")

    def entries(self, audit: Path) -> tuple[list[AuditLogEntry], bool]:
        """The page, and whether there are more. Reads files: not for the event loop."""
        above = -1 if self._above is None else self._above
        newer = takewhile(lambda item: item[0] > above, _backwards(audit))
        found = (_entry(seq, event) for seq, event in newer if self._fits(seq, event))
        if self._above is not None:
            # The page before a cursor is the one that ends just there.
            every = list(found)
            return every[-self._limit :], len(every) > self._limit
        first = list(islice(found, self._limit + 1))
        return first[: self._limit], len(first) > self._limit

    def _fits(self, seq: int, event: Admin) -> bool:
        if self._below is not None and seq >= self._below:
            return False
        at = unix_seconds(event.t_utc)
        return (
            (not self._types or _TYPES[event.action] in self._types)
            and (not self._actors or _actor_id(event) in self._actors)
            and (not self._targets or event.target in self._targets)
            and all(holds(at, bound) for holds, bound in self._bounds)
        )


def _backwards(audit: Path) -> Iterator[tuple[int, Admin]]:
    """ADMIN records that have a type there, the newest first."""
    end: int | None = None
    start = max(0, read_state(audit).size - _WINDOW)
    while True:
        events = read_events(audit, start)
        within = takewhile(lambda item, end=end: end is None or item[0] < end, events)  # type: ignore[misc]
        window = [
            (seq, event)
            for seq, event in within
            if isinstance(event, Admin) and event.action in _TYPES and event.outcome == "ok"
        ]
        yield from reversed(window)
        if start == 0:
            return
        end, start = start, max(0, start - _WINDOW)


def _entry(seq: int, event: Admin) -> AuditLogEntry:
    kind = _TYPES[event.action]
    name = kind.replace(".", "_")
    return AuditLogEntry(
        id=f"{_PREFIX}{seq}",
        type=kind,
        effective_at=unix_seconds(event.t_utc),
        actor=_actor(event),
        **{name: Target(event.target)},
    )


def _actor(event: Admin) -> Actor:
    if event.actor.startswith(KEY_ACTOR):
        return Actor("api_key", api_key=ActorKey(_actor_id(event)))
    return Actor("session", session=Session(User(event.actor)))


def _actor_id(event: Admin) -> str:
    return event.actor.removeprefix(KEY_ACTOR)


def _number(query: Query, name: str) -> int | None:
    cursor = query.text(name)
    if cursor is None:
        return None
    number = cursor.removeprefix(_PREFIX)
    if not (cursor.startswith(_PREFIX) and number.isascii() and number.isdigit()):
        raise RequestError(
            f"`{name}` is not the id of an entry: {cursor!r}", param=name, code="invalid_value"
        )
    return int(number)
