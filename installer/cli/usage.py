"""`appliance usage …`: what was used and what it cost, by whom."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.errors import NotFoundError, UsageError
from installer.cli import spans
from installer.cli.chart import bars
from installer.cli.output import (
    JsonOption,
    RootOption,
    err,
    node_layout,
    node_money,
    out,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from appliance.config import Layout
    from appliance.metering import Meter, ReportRow

app = typer.Typer(name="usage", help="Report what was used.", no_args_is_help=True)


NODE = "node "
"""Before the purpose of keys that the node made for itself, where others have a key's id."""


class By(StrEnum):
    """What the report is grouped by."""

    key = "key"
    project = "project"
    model = "model"
    day = "day"


class Format(StrEnum):
    """How the report is written."""

    table = "table"
    csv = "csv"
    json = "json"


@app.callback()
def group() -> None:
    """Report what was used, and what it cost."""


@app.command()
def report(
    by: Annotated[
        By, typer.Option("--by", help="Group by API key, project, model or day (UTC).")
    ] = By.key,
    since: Annotated[
        str | None, typer.Option("--since", help="First day, YYYY-MM-DD, UTC.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Day before which it ends, YYYY-MM-DD, UTC.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format.table,
    chart: Annotated[bool, typer.Option("--chart", help="Draw bars instead of a table.")] = False,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print requests, tokens and cost, up to the last acknowledged record."""
    from appliance.metering import catch_up, unbilled

    if chart and (as_json or form is not Format.table):
        raise UsageError("a chart is for people", hint="leave out --chart, or the format")
    first, last = (None if text is None else spans.day(text) for text in (since, until))
    if first is not None and last is not None and last <= first:
        raise UsageError(
            f"nothing lies between {since} and {until}",
            hint="--until names a later day than --since",
        )
    layout, money = node_money(root)
    names, own = _names(layout, by)
    with _open_meter(layout) as meter:
        catch_up(meter, layout.audit)
        rows = meter.report(by.value, since=first, until=last, own=own)
        lost = unbilled(meter, layout.audit)
    _say_unbilled(lost)
    if as_json or form is Format.json:
        found = [_document(by, row, names, own) for row in rows]
        print_json({"by": by.value, "currency": money.currency, "rows": found})
        return
    rows = _gathered(rows, names, own)
    names |= {NODE + name: name for name in names.values()}
    if form is Format.csv:
        out.file.write(_csv(by, rows, names, money.currency))
    elif chart:
        _print_chart(rows, names, money.currency)
    else:
        _print_table(by, rows, names, money.currency)


@app.command()
def rebuild(root: RootOption = None, as_json: JsonOption = False) -> None:
    """Make the usage database anew from the audit log."""
    from appliance.metering import rebuild as rebuild_from
    from appliance.metering import unbilled

    layout = node_layout(root)
    with _open_meter(layout) as meter:
        requests = rebuild_from(meter, layout.audit)
        lost = unbilled(meter, layout.audit)
    if as_json:
        print_json({"requests": requests})
    else:
        out.print(f"rebuilt from the audit log, pruned rows kept: {requests} requests in all")
    _say_unbilled(lost)


def _say_unbilled(records: int) -> None:
    """Note that the database does not reach back to what was pruned from the log."""
    if records:
        err.print(
            f"note: the log's first {records} records were pruned, and this database has no "
            "request of them. If they had any, it was lost: restore `metering` from a backup."
        )


@contextmanager
def _open_meter(layout: Layout) -> Iterator[Meter]:
    """The usage database, opened as the user that it belongs to."""
    from appliance.audit import acting_as_owner
    from appliance.metering import Meter

    if not layout.metering.is_dir():
        raise NotFoundError(
            f"there is no usage database in {layout.metering}", hint="install the node first"
        )
    with acting_as_owner(layout.metering), Meter(layout.usage_db) as meter:
        yield meter


def _names(layout: Layout, by: By) -> tuple[dict[str, str], frozenset[str]]:
    """What keys and projects are called, by their ids, and which keys the node made for itself;
    empty for other groups."""
    from appliance.access import KeyStore
    from appliance.metering import NOBODY

    if by not in {By.key, By.project} or not layout.keys_db.exists():
        return {}, frozenset()
    with KeyStore(layout.keys_db) as store:
        keys = store.list()
        own = frozenset(key.id for key in keys if key.of_node)
        if by is By.project:
            projects = {project.id: project.name for project in store.projects.list()}
            return {**projects, NOBODY: NODE.strip()}, own
        return {key.id: key.name for key in keys}, own


def _document(
    by: By, row: ReportRow, names: dict[str, str], own: Container[str]
) -> dict[str, object]:
    document = {**asdict(row), "name": names.get(row.group, row.group)}
    match by:
        case By.key:
            return {**document, "node": row.group in own}
        case By.project:
            return {**document, "group": row.group or NODE.strip(), "node": not row.group}
    return document


def _gathered(
    rows: Sequence[ReportRow], names: dict[str, str], own: Container[str]
) -> list[ReportRow]:
    """The organisation's rows, then one for each purpose that the node made keys for itself for:
    each proof, question and benchmark has a key of its own, and nobody is billed for it. By
    project they are one row, of no project."""
    found = [row for row in rows if row.group and row.group not in own]
    node: dict[str, ReportRow] = {}
    for row in rows:
        if row.group in own:
            name = NODE + names[row.group]
            node[name] = _sum(name, node[name], row) if name in node else replace(row, group=name)
        elif not row.group:
            node[row.group] = row
    return [*found, *(node[name] for name in sorted(node))]


def _sum(name: str, one: ReportRow, other: ReportRow) -> ReportRow:
    counts = asdict(one).keys() - {"group"}
    return replace(one, **{c: getattr(one, c) + getattr(other, c) for c in counts}, group=name)


def _print_table(by: By, rows: Sequence[ReportRow], names: dict[str, str], currency: str) -> None:
    from appliance.metering import format_money

    named = [by.value, "name"] if names else [by.value]
    print_table(
        [*named, "requests", "prompt", "cached", "completion", "reasoning", f"cost {currency}"],
        [
            (
                _shown(row.group),
                *([names.get(row.group, "")] if names else []),
                row.requests,
                row.prompt_tokens,
                row.cached_tokens,
                row.completion_tokens,
                row.reasoning_tokens,
                format_money(row.cost),
            )
            for row in rows
        ],
        empty="No request was served in that time.",
    )


def _shown(group: str) -> str:
    return NODE.strip() if not group or group.startswith(NODE) else group


def _csv(by: By, rows: Sequence[ReportRow], names: dict[str, str], currency: str) -> str:
    """RFC 4180, but for the line ends; cost is a decimal with six places."""
    from appliance.metering import format_money

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    counts = ["requests", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"]
    writer.writerow([by.value, "name", *counts, "cost", "currency"])
    for row in rows:
        values = asdict(row)
        writer.writerow(
            [
                _shown(row.group),
                names.get(row.group, row.group),
                *(values[count] for count in counts),
                format_money(row.cost, places=6),
                currency,
            ]
        )
    return text.getvalue()


def _print_chart(rows: Sequence[ReportRow], names: dict[str, str], currency: str) -> None:
    """Bars of what it cost; of tokens if all of it was free."""
    from appliance.metering import format_money

    priced = any(row.cost for row in rows)
    lines = bars(
        [
            (
                names.get(row.group, row.group),
                row.cost if priced else row.prompt_tokens + row.completion_tokens,
                format_money(row.cost)
                if priced
                else str(row.prompt_tokens + row.completion_tokens),
            )
            for row in rows
        ],
        min(out.width, 100),
    )
    out.print(f"cost, {currency}" if priced else "tokens, prompt and completion")
    for line in lines or ["No request was served in that time."]:
        out.print(line, markup=False)
