"""How every command speaks.

Rules: a result goes to standard output, everything else to standard error. With `--json` the
result is one JSON document on standard output and an error is one JSON document on standard
error. An error is one line `error: ...`, then one line `hint: ...`. Exit statuses are those of
the error tree (appliance/errors.py). Colour only on a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from appliance.config import (
    Config,
    Layout,
    MoneySettings,
    default_root,
    load_config,
    load_money,
)
from appliance.errors import (
    ApplianceError,
    ConfigError,
    PreflightError,
    RequestError,
    VerificationError,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
RootOption = Annotated[
    Path | None,
    typer.Option("--root", help="Prefix the node is installed in; the system by default."),
]
EvenWithdrawnOption = Annotated[
    bool, typer.Option("--even-withdrawn", help="Also if the packager has withdrawn it.")
]

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def node_config(root: Path | None) -> Config:
    """The configuration of the node that `--root` names, or the one this command belongs to."""
    return load_config(_node_root(root))


def node_layout(root: Path | None) -> Layout:
    """Where the node's files are, for commands that use none of its settings.

    Settings that are wrong stop nobody here, such as an auditor; a note says which.
    """
    found = _node_root(root)
    _note_wrong(found)
    return Layout(found)


def node_money(root: Path | None) -> tuple[Layout, MoneySettings]:
    """As `node_layout`, with `[money]`: for reports. Raises ConfigError if that is wrong."""
    found = _node_root(root)
    money = load_money(found)
    _note_wrong(found)
    return Layout(found), money


def _node_root(root: Path | None) -> Path:
    return root.absolute() if root is not None else default_root()


def _note_wrong(root: Path) -> None:
    try:
        load_config(root)
    except ConfigError as error:
        err.print(f"note: {error.message}; this command does without", markup=False)


def print_json(document: object) -> None:
    """Print `document` as JSON on standard output."""
    out.print_json(json.dumps(document))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print `rows` under `columns`; `empty` says what it means that there are none."""
    if not rows:
        out.print(empty)
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    out.print(table)


def print_fields(values: Mapping[str, object]) -> None:
    """Print name and value, one pair a line."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        out.print(f"{name:<{width}}  {value}", markup=False)


def print_error(error: ApplianceError, *, as_json: bool) -> None:
    """Print `error` and its hint on standard error."""
    if as_json:
        err.print_json(json.dumps({"error": error_document(error)}))
        return
    err.print(f"error: {error.message}", markup=False, style="bold red")
    if isinstance(error, PreflightError):
        for blocker in error.blockers:
            err.print(f"  - {blocker.message}", markup=False)
            err.print(f"    remedy: {blocker.remedy}", markup=False)
    if error.hint:
        err.print(f"hint: {error.hint}", markup=False)


def error_document(error: ApplianceError) -> dict[str, object]:
    """The JSON form of `error`."""
    document: dict[str, object] = {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
    }
    if isinstance(error, VerificationError):
        document["path"] = error.path
    if isinstance(error, RequestError):
        document["param"] = error.param
    if isinstance(error, PreflightError):
        document["blockers"] = [
            {"code": b.code, "message": b.message, "remedy": b.remedy} for b in error.blockers
        ]
    return document
