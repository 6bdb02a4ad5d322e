"""GET /v1/organization/usage/completions, …/usage/embeddings and /v1/organization/costs.

Sums of settled requests in buckets of time, up to the last one that ended before this was asked.
Embeddings are told apart by their route; all else is completions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.errors import RequestError
from appliance.metering import BucketRow, Column, Filter, Meter, format_money
from appliance.shim.accounting import Accounting
from appliance.shim.administration.query import Query
from appliance.shim.answer import send_document

_LATEST = 1 << 40
"""Unix seconds; a bound on what is taken for a time."""
_UNSUPPORTED = {
    "user_ids": "a key belongs to a project, not to a user",
}
_COLUMNS: dict[str, Column] = {
    "project_id": "project",
    "api_key_id": "key_id",
    "model": "model",
    "line_item": "model",
    "batch": "batch",
}
"""Their names of what can be grouped by, and ours. A line item of costs is a model."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What one of the three routes answers."""

    name: Literal["completions", "embeddings", "costs"]
    embeddings: bool | None
    group_by: tuple[str, ...]
    filters: tuple[tuple[str, Column], ...]
    widths: dict[str, tuple[int, int, int]]
    """Of a bucket: seconds, buckets on a page by default, and at most."""


_WIDTHS = {"1m": (60, 60, 1440), "1h": (3600, 24, 168), "1d": (86_400, 7, 31)}
_FILTERS: tuple[tuple[str, Column], ...] = (
    ("project_ids", "project"),
    ("api_key_ids", "key_id"),
    ("models", "model"),
)
COMPLETIONS = Kind(
    "completions", False, ("project_id", "api_key_id", "model", "batch"), _FILTERS, _WIDTHS
)
EMBEDDINGS = Kind("embeddings", True, ("project_id", "api_key_id", "model"), _FILTERS, _WIDTHS)
COSTS = Kind(
    "costs",
    None,
    ("project_id", "api_key_id", "line_item"),
    (("project_ids", "project"), ("api_key_ids", "key_id"), ("line_items", "model")),
    {"1d": (86_400, 7, 180)},
)


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

    value: msgspec.Raw
    currency: str


class CostsResult(msgspec.Struct, frozen=True):
    amount: Amount
    project_id: str | None = None
    api_key_id: str | None = None
    line_item: str | None = None
    object: Literal["organization.costs.result"] = "organization.costs.result"


class Bucket(msgspec.Struct, frozen=True):
    """`end_time` is not part of it."""

    start_time: int
    end_time: int
    results: Sequence[msgspec.Struct]
    object: Literal["bucket"] = "bucket"


class UsagePage(msgspec.Struct, frozen=True):
    data: Sequence[Bucket]
    has_more: bool
    next_page: str | None
    object: Literal["page"] = "page"


class UsageEndpoint:
    """One of the three routes."""

    def __init__(self, kind: Kind, usage_db: Path, accounting: Accounting, currency: str) -> None:
        self._kind = kind
        self._usage_db = usage_db
        self._accounting = accounting
        self._currency = currency.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted, width, last = _filter(scope, self._kind)
        await self._accounting.settled()
        rows = await asyncio.to_thread(self._read, wanted)
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
            None if group.get(name) is None else str(group[name])
            for name in ("project_id", "api_key_id", "model")
        )
        if self._kind.name == "costs":
            value = msgspec.Raw(format_money(row.cost, places=6).encode("ascii"))
            return CostsResult(Amount(value, self._currency), project, key, model)
        if self._kind.name == "embeddings":
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
    known = ["start_time", "end_time", "bucket_width", "group_by", "limit", "page"]
    filters = [name for name, _ in kind.filters]
    query = Query(
        scope,
        [*known, *filters, *(["batch"] if kind is COMPLETIONS else [])],
        _UNSUPPORTED,
    )
    chosen = query.text("bucket_width", "1d", tuple(kind.widths))
    assert chosen is not None
    width, usual, most = kind.widths[chosen]
    start = query.number("start_time", None, 0, _LATEST)
    end = query.number("end_time", int(time.time()) + 1, 0, _LATEST)
    if end <= start:
        raise RequestError(
            "`end_time` is not after `start_time`", param="end_time", code="invalid_value"
        )
    # Buckets are whole: the first begins where that of `start_time` does.
    first = query.number("page", start, start, _LATEST) // width * width
    last = -(-end // width) * width
    stop = min(last, first + width * query.number("limit", usual, 1, most))
    only: dict[Column, Sequence[str | int]] = {
        column: query.texts(name) for name, column in kind.filters if query.texts(name)
    }
    batch = query.flag("batch")
    if batch is not None:
        only["batch"] = [int(batch)]
    groups = dict.fromkeys(_COLUMNS[name] for name in query.texts("group_by", kind.group_by))
    return (
        Filter(first, max(first, stop), width, tuple(groups), only, kind.embeddings),
        width,
        last,
    )
