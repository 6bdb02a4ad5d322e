"""What is reserved for a key or a project: percent of a model's capacity.

Owns the bound: what is reserved of a model, for all that live, leaves a part for everybody else.
An archived project's reserve does not count, nor one of a key whose whole lineage has ended; they
come to nothing by themselves, since nobody can ask with them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping

from appliance.access.database import AccessDatabase
from appliance.access.words import check_words
from appliance.errors import ConflictError, UsageError

MOST_RESERVED = 75
"""Percent of a model that all reserves together may have; the engine keeps to it as well."""
ALL_MODELS = ""
Reserves = Mapping[str, int]
"""Model (or ALL_MODELS) -> percent. One for a model counts there instead of the one for all."""

_LIVE = (
    "SELECT subject, model, percent FROM reserves WHERE subject IN"
    " (SELECT id FROM projects WHERE archived IS NULL"
    " UNION SELECT lineage FROM keys JOIN projects ON projects.id = keys.project"
    " WHERE revoked IS NULL AND archived IS NULL AND coalesce(expires, ?) >= ?)"
)


def percent_of(reserves: Reserves, model: str) -> int:
    """What `reserves` have of `model`; 0: nothing."""
    return reserves.get(model, reserves.get(ALL_MODELS, 0))


def reserves_of(lines: str | None) -> Reserves:
    """Reserves from what `summary` makes of their rows."""
    pairs = (line.split("\t") for line in (lines or "").split("\n") if line)
    return dict(sorted((model, int(percent)) for model, percent in pairs))


def summary(subject: str) -> str:
    """A column with the reserves of the column `subject`."""
    pair = "reserves.model || char(9) || reserves.percent"
    rows = f"FROM reserves WHERE reserves.subject = {subject}"
    return f"(SELECT group_concat({pair}, char(10)) {rows})"


def check_reserve(db: AccessDatabase, subject: str, model: str, percent: int | None) -> None:
    """Raise UsageError or ConflictError unless `subject` can have `percent` of `model`."""
    check_words([model] if model else [], "the name of a model")
    if percent is None:
        return
    if not 1 <= percent <= MOST_RESERVED:
        raise UsageError(
            f"{percent} percent cannot be reserved",
            hint=f"use a whole number from 1 to {MOST_RESERVED}, or `none`",
        )
    reserved = _live(db)
    reserved[subject] = {**reserved.get(subject, {}), model: percent}
    for name in sorted({name for reserves in reserved.values() for name in reserves}):
        _check_total(name, reserved)


def store_reserve(db: AccessDatabase, subject: str, model: str, percent: int | None) -> None:
    """Reserve `percent` of `model` for `subject`, in place of what it had; None: nothing.

    Holds for the next request. Raises UsageError, ConflictError.
    """
    with db.transaction():
        check_reserve(db, subject, model, percent)
        db.rows("DELETE FROM reserves WHERE subject = ? AND model = ?", subject, model)
        if percent is not None:
            db.insert("reserves", {"subject": subject, "model": model, "percent": percent})


def _check_total(model: str, reserved: dict[str, Reserves]) -> None:
    total = sum(percent_of(reserves, model) for reserves in reserved.values())
    if total > MOST_RESERVED:
        of = f"the model {model}" if model else "every model"
        raise ConflictError(
            f"{total} percent of {of} would be reserved; {MOST_RESERVED} can be",
            hint="`appliance keys list` and `appliance projects list` show who has how much;"
            " `--share none` gives it back",
        )


def _live(db: AccessDatabase) -> dict[str, Reserves]:
    now = int(time.time())
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for subject, model, percent in db.rows(_LIVE, now, now):
        found[subject][model] = percent
    return dict(found)
