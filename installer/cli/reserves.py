"""Options that reserve capacity, the same for keys and projects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from appliance.errors import UsageError
from installer.cli.output import print_table

_NONE = "none"
ShareOption = Annotated[
    str | None,
    typer.Option(
        "--share", metavar="PERCENT", help="Percent of the capacity, for example 25, or `none`."
    ),
]
ModelOption = Annotated[
    str, typer.Option("--model", help="Of this model, in place of what is reserved of each.")
]


def percent(text: str) -> int | None:
    """A share as it is typed; None for `none`. Raises UsageError."""
    if text == _NONE:
        return None
    digits = text.removesuffix("%").rstrip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 3):
        raise UsageError(f"--share cannot be {text!r}", hint="use a whole number, or `none`")
    return int(digits)


def recorded(share: int | None, model: str) -> str:
    """What was reserved, short enough for an audit record."""
    return f"share={_NONE if share is None else share} model={model or 'all'}"


def document(reserves: Mapping[str, int]) -> list[dict[str, object]]:
    """Reserves for JSON; `model` null: of each that has none of its own."""
    return [{"model": model or None, "percent": share} for model, share in reserves.items()]


def summary(reserves: Mapping[str, int]) -> str:
    """Reserves in one cell of a table."""
    return ", ".join(_words(reserves)) or "shared"


def print_reserves(reserves: Mapping[str, int]) -> None:
    """Print all reserves."""
    print_table(
        ["model", "reserved"],
        [(model or "each", f"{share} %") for model, share in reserves.items()],
        empty="Nothing is reserved: its requests share the capacity with all others.",
    )


def _words(reserves: Mapping[str, int]) -> list[str]:
    return [f"{share} % of {model}" if model else f"{share} %" for model, share in reserves.items()]
