"""`appliance usage …`: what was used, by whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.errors import NotFoundError
from installer.cli.output import (
    JsonOption,
    RootOption,
    node_config,
    out,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from appliance.config import Layout
    from appliance.metering import Meter

app = typer.Typer(name="usage", help="Report what was used.", no_args_is_help=True)


class By(StrEnum):
    """What the report is grouped by."""

    key = "key"
    model = "model"
    day = "day"


@app.callback()
def group() -> None:
    """Report what was used."""


@app.command()
def report(
    by: Annotated[By, typer.Option("--by", help="Group by API key, model or day (UTC).")] = By.key,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print requests and tokens per key, model or day, up to the last acknowledged record."""
    from appliance.metering import catch_up

    layout = node_config(root).layout
    with _open_meter(layout) as meter:
        catch_up(meter, layout.audit)
        rows = meter.report(by.value)
    if as_json:
        print_json({"by": by.value, "rows": [asdict(row) for row in rows]})
        return
    print_table(
        [by.value, "requests", "prompt", "cached", "completion", "reasoning"],
        [tuple(asdict(row).values()) for row in rows],
        empty="No request was served yet.",
    )


@app.command()
def rebuild(root: RootOption = None, as_json: JsonOption = False) -> None:
    """Make the usage database anew from the audit log."""
    from appliance.metering import rebuild as rebuild_from

    layout = node_config(root).layout
    with _open_meter(layout) as meter:
        requests = rebuild_from(meter, layout.audit)
    if as_json:
        print_json({"requests": requests})
    else:
        out.print(f"rebuilt from the audit log: {requests} requests")


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
