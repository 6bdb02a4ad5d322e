"""Sums over settled requests: for people, for limits, and for the administration API.

Owns the questions and their SQL; the database belongs to the meter. Sums of money are sums of
whole micro-units, so each way to group them adds up to the same total.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from sqlite_utils import Database

Dimension = Literal["key", "project", "model", "day"]
DIMENSIONS: tuple[str, ...] = get_args(Dimension)
Column = Literal["key_id", "project", "model", "batch"]
COLUMNS: tuple[str, ...] = get_args(Column)
READING = ("/v1/embeddings", "/v1/rerank", "/v2/rerank", "/v1/score")
"""Routes that generate nothing: the administration API has their usage with embeddings."""
NOBODY = ""
"""The key and the project of what the node asked itself."""

_OWN = "key_id in (select value from json_each(:own))"
"""Of a row: whether the node asked it itself. A list as JSON has no bound on its length."""
_KEY, _PROJECT = (f"iif({_OWN}, '{NOBODY}', {column})" for column in ("key_id", "project"))
_COLUMNS: dict[Column, str] = {"key_id": _KEY, "project": _PROJECT}
"""What stands for a column where it is grouped by, if not itself."""
_GROUPS: dict[Dimension, str] = {
    "key": "key_id",
    "project": _PROJECT,
    "model": "model",
    "day": "date(at, 'unixepoch')",
}
_SUMS = (
    "count(*) as requests, sum(prompt_tokens) as prompt_tokens,"
    " sum(cached_tokens) as cached_tokens, sum(completion_tokens) as completion_tokens,"
    " sum(reasoning_tokens) as reasoning_tokens, sum(cost) as cost"
)


@dataclass(frozen=True, slots=True)
class ReportRow:
    """Sums over the settled requests of one key, project, model or day (UTC, YYYY-MM-DD)."""

    group: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost: int
    """Micro-units."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What one key used on one day: `day` in days since 1970, `cost` in micro-units."""

    key_id: str
    project: str
    day: int
    tokens: int
    cost: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Which requests, from `start` on and before `end` (Unix seconds), and how to group them."""

    start: int
    end: int
    width: int
    """Seconds of a bucket; buckets are counted from 1970."""
    group_by: tuple[Column, ...] = ()
    only: Mapping[Column, Sequence[str | int]] = field(default_factory=dict)
    """Values that a column may have."""
    embeddings: bool | None = None
    """True: what only reads, as embeddings do; False: all else; None: both."""
    own: Collection[str] = ()
    """Ids of the node's own keys: their rows' key and project are NOBODY, behind all others."""


@dataclass(frozen=True, slots=True)
class BucketRow:
    """Sums of one bucket, which begins at `start`, and one group."""

    start: int
    group: Mapping[str, str | int]
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: int


def sums(
    db: Database,
    by: Dimension,
    since: int | None,
    until: int | None,
    own: Collection[str] = (),
) -> list[ReportRow]:
    """Per key, project, model or day; what was asked with a key of `own` is no project's."""
    order = "1" if by == "day" else "completion_tokens desc, 1"
    rows = db.query(
        f"select {_GROUPS[by]} as 'group', {_SUMS} from usage"  # noqa: S608
        " where (:since is null or at >= :since) and (:until is null or at < :until)"
        f" group by 1 order by {order}",
        {"since": since, "until": until, "own": json.dumps(list(own))},
    )
    return [ReportRow(**row) for row in rows]


def spent(db: Database, since: int) -> list[Spent]:
    """Per key, project and day."""
    rows = db.query(
        "select key_id, project, at / 86400 as day,"
        " sum(prompt_tokens + completion_tokens) as tokens, sum(cost) as cost"
        " from usage where at >= ? group by 1, 2, 3",
        [since],
    )
    return [Spent(**row) for row in rows]


def buckets(db: Database, wanted: Filter) -> list[BucketRow]:
    """Per bucket and group, in order."""
    names = [f"group_{number}" for number in range(len(wanted.group_by))]
    groups = [
        f"{_COLUMNS.get(column, column)} as {name}"
        for column, name in zip(wanted.group_by, names, strict=True)
    ]
    conditions, values = _conditions(wanted)
    rows = db.query(
        f"select {', '.join(['at / :width as bucket', *groups])}, {_SUMS} from usage"  # noqa: S608
        f" where {' and '.join(conditions)} group by {', '.join(['bucket', *names])}"
        f" order by {', '.join(['bucket', *(f'{name} = :nobody' for name in names), *names])}",
        values,
    )
    return [
        BucketRow(
            start=row["bucket"] * wanted.width,
            group={column: row[name] for column, name in zip(wanted.group_by, names, strict=True)},
            requests=row["requests"],
            prompt_tokens=row["prompt_tokens"],
            cached_tokens=row["cached_tokens"],
            completion_tokens=row["completion_tokens"],
            cost=row["cost"],
        )
        for row in rows
    ]


def _conditions(wanted: Filter) -> tuple[list[str], dict[str, str | int]]:
    """Which rows, and the values that the whole query needs."""
    values: dict[str, str | int] = {
        "start": wanted.start,
        "end": wanted.end,
        "width": wanted.width,
        "own": json.dumps(list(wanted.own)),
        "nobody": NOBODY,
    }
    conditions = ["at >= :start", "at < :end"]
    for column, allowed in wanted.only.items():
        # A key's own id finds what it asked, whoever made it.
        one = _PROJECT if column == "project" else column
        conditions.append(f"{one} in (select value from json_each(:{column}))")  # noqa: S608
        values[column] = json.dumps(list(allowed))
    if wanted.embeddings is not None:
        verb = "in" if wanted.embeddings else "not in"
        conditions.append(f"route {verb} (select value from json_each(:reading))")  # noqa: S608
        values["reading"] = json.dumps(READING)
    return conditions, values
