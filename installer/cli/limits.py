"""Options that set limits, the same for keys and projects."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.errors import UsageError
from installer.cli.output import print_fields

if TYPE_CHECKING:
    from appliance.access import Limits

_NONE = "none"
RequestsPerMinute = Annotated[
    str | None, typer.Option("--requests-per-minute", help="Requests in any 60 seconds, or `none`.")
]
TokensPerMinute = Annotated[
    str | None,
    typer.Option("--tokens-per-minute", help="Tokens, prompt and answer, in any 60 seconds."),
]
ParallelRequests = Annotated[
    str | None, typer.Option("--parallel", help="Requests that run at the same time.")
]
TokensPerDay = Annotated[
    str | None, typer.Option("--tokens-per-day", help="Tokens from midnight to midnight, UTC.")
]
TokensPerMonth = Annotated[
    str | None, typer.Option("--tokens-per-month", help="Tokens in a calendar month, UTC.")
]
MoneyPerDay = Annotated[
    str | None, typer.Option("--money-per-day", help="Cost of a day, for example 12.50.")
]
MoneyPerMonth = Annotated[
    str | None, typer.Option("--money-per-month", help="Cost of a calendar month.")
]


def changes(**given: str | None) -> dict[str, int | None]:
    """Limits to set, by their name; `none` takes one away. Raises UsageError."""
    from appliance.metering import parse_money

    wanted: dict[str, int | None] = {}
    for name, text in given.items():
        if text is None:
            continue
        if text == _NONE:
            wanted[name] = None
        elif name.startswith("money"):
            wanted[name] = parse_money(text)
        else:
            wanted[name] = _count(name, text)
    return wanted


def document(limits: Limits) -> dict[str, int | None]:
    """Limits for JSON; money in micro-units."""
    return asdict(limits)


def recorded(wanted: dict[str, int | None]) -> str:
    """What was set, short enough for an audit record."""
    return " ".join(f"{name}={_NONE if value is None else value}" for name, value in wanted.items())


def print_limits(limits: Limits) -> None:
    """Print all limits."""
    from appliance.metering import format_money

    print_fields(
        {
            name.replace("_", " "): "none"
            if value is None
            else format_money(value)
            if name.startswith("money")
            else value
            for name, value in document(limits).items()
        }
    )


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UsageError(
            f"{name.replace('_', ' ')} cannot be {text!r}", hint="use a whole number, or `none`"
        )
    return int(text)
