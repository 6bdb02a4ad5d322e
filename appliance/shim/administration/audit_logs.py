"""GET /v1/organization/audit_logs: what was administered, newest first, from this node's log.

Owns the mapping of ADMIN records to OpenAI's event types. Records that have none (models,
requests, the log's own) are not shown: the log itself and `appliance audit verify` have them.
Reads backwards, so the newest entries cost little however long the log is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType, field
from starlette.types import Receive, Scope, Send

from appliance.audit import read_events
from appliance.audit.event import Admin, unix_seconds
from appliance.audit.state import read_state
from appliance.errors import RequestError
from appliance.shim.accounting import KEY_ACTOR
from appliance.shim.administration.pages import LIMIT, Limit, page
from appliance.shim.answer import send_document
from appliance.shim.wire.decode import decode_query
from appliance.shim.wire.parameters import Parameter

_WINDOW = 4096
"""Records read at a time."""
_PREFIX = "audit_log-"
EventType = Literal[
    "api_key.created",
    "api_key.updated",
    "api_key.deleted",
    "rate_limit.updated",
    "project.created",
    "project.updated",
    "project.archived",
]
Moment = Annotated[int, Meta(ge=0, le=1 << 40)]
"""Unix seconds."""
_TYPES: dict[str, EventType] = {
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
_REFUSED = (
    Parameter("actor_emails", "refused", "the log has no addresses"),
    Parameter("project_ids", "refused", "the log names what was changed: use `resource_ids`"),
    Parameter("tenant_only", "refused", "there are no tenants"),
)


class AuditLogsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    limit: Limit = LIMIT
    after: str | None = None
    before: str | None = None
    event_types: list[str] = []
    actor_ids: list[str] = []
    resource_ids: list[str] = []
    later_than: Moment | None = field(default=None, name="effective_at[gt]")
    not_before: Moment | None = field(default=None, name="effective_at[gte]")
    earlier_than: Moment | None = field(default=None, name="effective_at[lt]")
    not_after: Moment | None = field(default=None, name="effective_at[lte]")

    def covers(self, at: int) -> bool:
        """Whether Unix second `at` is in the span asked for."""
        return (
            (self.later_than is None or at > self.later_than)
            and (self.not_before is None or at >= self.not_before)
            and (self.earlier_than is None or at < self.earlier_than)
            and (self.not_after is None or at <= self.not_after)
        )


class ActorUser(msgspec.Struct, frozen=True):
    id: str


class ActorSession(msgspec.Struct, frozen=True):
    user: ActorUser


class ActorKey(msgspec.Struct, frozen=True):
    id: str
    type: Literal["user"] = "user"


class Actor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A login name on the node, or an admin key of this API."""

    type: Literal["session", "api_key"]
    session: ActorSession | None = None
    api_key: ActorKey | None = None


class Target(msgspec.Struct, frozen=True):
    """What was changed."""

    id: str


class AuditLogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One event; the field named like its type says what it was about."""

    id: str
    type: EventType
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
        self._query = query = decode_query(scope, AuditLogsQuery, _REFUSED)
        # Newest first: `after` goes back in time, `before` comes forward.
        self._below = _number("after", query.after)
        self._above = _number("before", query.before)

    def entries(self, audit: Path) -> tuple[list[AuditLogEntry], bool]:
        """The page, and whether there are more. Reads files: not for the event loop."""
        above = -1 if self._above is None else self._above
        newer = takewhile(lambda item: item[0] > above, _backwards(audit))
        found = (_entry(seq, event) for seq, event in newer if self._fits(seq, event))
        if self._above is not None:
            # The page before a cursor is the one that ends just there.
            every = list(found)
            return every[-self._query.limit :], len(every) > self._query.limit
        first = list(islice(found, self._query.limit + 1))
        return first[: self._query.limit], len(first) > self._query.limit

    def _fits(self, seq: int, event: Admin) -> bool:
        if self._below is not None and seq >= self._below:
            return False
        query = self._query
        return (
            (not query.event_types or _TYPES[event.action] in query.event_types)
            and (not query.actor_ids or _actor_id(event) in query.actor_ids)
            and (not query.resource_ids or event.target in query.resource_ids)
            and query.covers(unix_seconds(event.t_utc))
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
    return Actor("session", session=ActorSession(ActorUser(event.actor)))


def _actor_id(event: Admin) -> str:
    return event.actor.removeprefix(KEY_ACTOR)


def _number(name: str, cursor: str | None) -> int | None:
    if cursor is None:
        return None
    number = cursor.removeprefix(_PREFIX)
    if not (cursor.startswith(_PREFIX) and number.isascii() and number.isdigit()):
        raise RequestError(
            f"`{name}` is not the id of an entry: {cursor!r}", param=name, code="invalid_value"
        )
    return int(number)
