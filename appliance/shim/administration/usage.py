"""GET /v1/organization/usage/completions, …/usage/embeddings and /v1/organization/costs.

Sums of settled requests in buckets of time, up to the last one that ended before this was asked.
Completions are what generates; embeddings what only reads, so rerank and score too. Each request is
in one of the two. What the node asked itself is one group without a key and without a project: it
is on nobody's bill, nobody else can look its keys up, and the groups add up to the whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta
from starlette.types import Receive, Scope, Send

from appliance.access import KeyStore
from appliance.errors import RequestError
from appliance.metering import BucketRow, Column, Filter, Meter, format_money
from appliance.shim.accounting import Accounting
from appliance.shim.answer import send_document
from appliance.shim.wire.decode import decode_query
from appliance.shim.wire.parameters import Parameter

Moment = Annotated[int, Meta(ge=0, le=1 << 40)]
"""Unix seconds."""
_REFUSED = (Parameter("user_ids", "refused", "a key belongs to a project, not to a user"),)
_COLUMNS: dict[str, Column] = {
    "project_id": "project",
    "api_key_id": "key_id",
    "model": "model",
    "line_item": "model",
    "batch": "batch",
}
"""Their names of what can be grouped by, and ours. A line item of costs is a model."""


class _SpanQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the three have in common."""

    start_time: Moment
    end_time: Moment | None = None
    page: Moment | None = None
    project_ids: list[str] = []
    api_key_ids: list[str] = []
    bucket_width: str = "1d"
    limit: int | None = None
    group_by: Sequence[str] = ()


class _UsageQuery(_SpanQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    bucket_width: Literal["1m", "1h", "1d"] = "1d"
    limit: Annotated[int, Meta(ge=1, le=1440)] | None = None
    models: list[str] = []


class CompletionsQuery(_UsageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    group_by: list[Literal["project_id", "api_key_id", "model", "batch"]] = []
    batch: bool | None = None


class EmbeddingsQuery(_UsageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    group_by: list[Literal["project_id", "api_key_id", "model"]] = []


class CostsQuery(_SpanQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    bucket_width: Literal["1d"] = "1d"
    limit: Annotated[int, Meta(ge=1, le=180)] | None = None
    group_by: list[Literal["project_id", "api_key_id", "line_item"]] = []
    line_items: list[str] = []


@dataclass(frozen=True, slots=True)
class Kind:
    """What one of the three routes answers."""

    query: type[CompletionsQuery | EmbeddingsQuery | CostsQuery]
    embeddings: bool | None
    """Which requests it counts, as Filter has it."""
    widths: Mapping[str, tuple[int, int, int]]
    """Of a bucket: seconds, buckets on a page by default, and at most."""


_WIDTHS = {"1m": (60, 60, 1440), "1h": (3600, 24, 168), "1d": (86_400, 7, 31)}
_FILTERS: dict[str, Column] = {
    "project_ids": "project",
    "api_key_ids": "key_id",
    "models": "model",
    "line_items": "model",
}
COMPLETIONS = Kind(CompletionsQuery, False, _WIDTHS)
EMBEDDINGS = Kind(EmbeddingsQuery, True, _WIDTHS)
COSTS = Kind(CostsQuery, None, {"1d": (86_400, 7, 180)})


R = TypeVar("R", bound=msgspec.Struct)


class CompletionsResult(msgspec.Struct, frozen=True):
    """Fields that were not grouped by are null."""

    input_tokens: int
    output_tokens: int
    input_cached_tokens: int
    input_uncached_tokens: int
    num_model_requests: int
    project_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    batch: bool | None = None
    user_id: None = None
    service_tier: None = None
    object: Literal["organization.usage.completions.result"] = (
        "organization.usage.completions.result"
    )


class EmbeddingsResult(msgspec.Struct, frozen=True):
    input_tokens: int
    num_model_requests: int
    project_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    user_id: None = None
    object: Literal["organization.usage.embeddings.result"] = "organization.usage.embeddings.result"


class Amount(msgspec.Struct, frozen=True):
    """`value` is written as an exact decimal, with six places."""

    value: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "number"})]
    currency: str


class CostsResult(msgspec.Struct, frozen=True):
    amount: Amount
    project_id: str | None = None
    api_key_id: str | None = None
    line_item: str | None = None
    object: Literal["organization.costs.result"] = "organization.costs.result"


class Bucket(msgspec.Struct, Generic[R], frozen=True):
    """`end_time` is not part of it."""

    start_time: int
    end_time: int
    results: Sequence[R]
    object: Literal["bucket"] = "bucket"


class UsagePage(msgspec.Struct, Generic[R], frozen=True):
    data: Sequence[Bucket[R]]
    has_more: bool
    next_page: str | None
    object: Literal["page"] = "page"


class UsageEndpoint:
    """One of the three routes."""

    def __init__(
        self, kind: Kind, usage_db: Path, keys: KeyStore, accounting: Accounting, currency: str
    ) -> None:
        self._kind = kind
        self._keys = keys
        self._usage_db = usage_db
        self._accounting = accounting
        self._currency = currency.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted, width, last = _filter(scope, self._kind)
        await self._accounting.settled()
        own = [key.id for key in self._keys.list() if key.of_node]
        rows = await asyncio.to_thread(self._read, replace(wanted, own=own))
        found: dict[int, list[msgspec.Struct]] = {}
        for row in rows:
            found.setdefault(row.start, []).append(self._result(row))
        buckets = [
            Bucket(start, start + width, found.get(start, []))
            for start in range(wanted.start, wanted.end, width)
        ]
        more = wanted.end < last
        await send_document(send, UsagePage(buckets, more, str(wanted.end) if more else None))

    def _read(self, wanted: Filter) -> list[BucketRow]:
        with Meter(self._usage_db) as meter:
            return meter.buckets(wanted)

    def _result(self, row: BucketRow) -> msgspec.Struct:
        group = {name: row.group[ours] for name, ours in _COLUMNS.items() if ours in row.group}
        project, key, model = (
            str(group[name]) if group.get(name) else None
            for name in ("project_id", "api_key_id", "model")
        )
        if self._kind is COSTS:
            value = msgspec.Raw(format_money(row.cost, places=6).encode("ascii"))
            return CostsResult(Amount(value, self._currency), project, key, model)
        if self._kind is EMBEDDINGS:
            return EmbeddingsResult(row.prompt_tokens, row.requests, project, key, model)
        return CompletionsResult(
            input_tokens=row.prompt_tokens,
            output_tokens=row.completion_tokens,
            input_cached_tokens=row.cached_tokens,
            input_uncached_tokens=row.prompt_tokens - row.cached_tokens,
            num_model_requests=row.requests,
            project_id=project,
            api_key_id=key,
            model=model,
            batch=bool(group["batch"]) if "batch" in group else None,
        )


def _filter(scope: Scope, kind: Kind) -> tuple[Filter, int, int]:
    """What is asked for on this page, the width of its buckets, and where the last page ends."""
    query = decode_query(scope, kind.query, _REFUSED)
    width, usual, most = kind.widths[query.bucket_width]
    end = int(time.time()) + 1 if query.end_time is None else query.end_time
    _check(query, end, most)
    # Buckets are whole: the first begins where that of `start_time` does.
    first = (query.start_time if query.page is None else query.page) // width * width
    last = -(-end // width) * width
    stop = min(last, first + width * (query.limit or usual))
    only: dict[Column, Sequence[str | int]] = {
        column: values for name, column in _FILTERS.items() if (values := getattr(query, name, ()))
    }
    if isinstance(query, CompletionsQuery) and query.batch is not None:
        only["batch"] = [int(query.batch)]
    groups = dict.fromkeys(_COLUMNS[name] for name in query.group_by)
    wanted = Filter(first, max(first, stop), width, tuple(groups), only, kind.embeddings)
    return wanted, width, last


def _check(query: _SpanQuery, end: int, most: int) -> None:
    """Raise RequestError where two parameters contradict each other."""
    wrong = ""
    if query.end_time is None and end <= query.start_time:
        wrong, why = "start_time", "is still to come, by this node's clock"
    elif end <= query.start_time:
        wrong, why = "end_time", "is not after `start_time`"
    elif query.page is not None and query.page < query.start_time:
        wrong, why = "page", "is before `start_time`"
    elif query.limit is not None and query.limit > most:
        wrong, why = "limit", f"must be from 1 to {most} for this `bucket_width`"
    if wrong:
        raise RequestError(f"`{wrong}` {why}", param=wrong, code="invalid_value")
