"""`appliance prices …`: what tokens cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.errors import NotFoundError
from installer.cli.names import note_unknown_models
from installer.cli.output import (
    JsonOption,
    RootOption,
    node_config,
    node_money,
    out,
    print_json,
    print_table,
)
from installer.cli.spans import shown

if TYPE_CHECKING:
    from appliance.config import Layout
    from appliance.metering import Price, PriceTable

app = typer.Typer(name="prices", help="Set and show prices.", no_args_is_help=True)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]


@app.callback()
def group() -> None:
    """Set and show prices: for a million tokens, each change a version of its own."""


@app.command("set")
def set_price(
    model: ModelArgument,
    input_price: Annotated[
        str, typer.Option("--input", help="For a million prompt tokens, for example 0.28.")
    ],
    output: Annotated[str, typer.Option("--output", help="For a million generated tokens.")],
    cached: Annotated[
        str | None,
        typer.Option("--cached", help="For prompt tokens from the cache; as --input if absent."),
    ] = None,
    batch_input: Annotated[
        str | None, typer.Option("--batch-input", help="In batches; as --input if absent.")
    ] = None,
    batch_cached: Annotated[
        str | None, typer.Option("--batch-cached", help="In batches; as --batch-input if absent.")
    ] = None,
    batch_output: Annotated[
        str | None, typer.Option("--batch-output", help="In batches; as --output if absent.")
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a model a price, for requests that are admitted from now on."""
    from appliance.audit import admin_event
    from appliance.metering import Tariff, parse_money

    ordinary = Tariff(
        parse_money(input_price), parse_money(cached or input_price), parse_money(output)
    )
    if batch_input is None and batch_cached is None:
        batch_prompt = (ordinary.input, ordinary.cached)
    else:
        fresh = parse_money(batch_input or input_price)
        batch_prompt = (fresh, fresh if batch_cached is None else parse_money(batch_cached))
    batch = Tariff(*batch_prompt, parse_money(batch_output or output))
    config = node_config(root)
    with _open_table(config.layout) as table, table.changing(model, ordinary, batch) as price:
        # The record first: no price is in force without one.
        admin_event(
            config.layout,
            config.audit,
            "prices.set",
            target=model,
            version=str(price.version),
            reason=_recorded(price),
        )
    if as_json:
        print_json(document(price))
    else:
        out.print(f"{model} has price version {price.version} from now on", markup=False)
        note_unknown_models(config.layout, [model])


@app.command("list")
def list_prices(root: RootOption = None, as_json: JsonOption = False) -> None:
    """List the price in force of each model that has one."""
    layout, money = node_money(root)
    with _open_table(layout) as table:
        prices = table.list()
    _print(prices, money.currency, as_json=as_json)


@app.command()
def show(model: ModelArgument, root: RootOption = None, as_json: JsonOption = False) -> None:
    """Show every price that a model ever had."""
    layout, money = node_money(root)
    with _open_table(layout) as table:
        prices = table.history(model)
    if not prices:
        raise NotFoundError(
            f"{model!r} has no price", hint="`appliance prices set` gives it one; it is free now"
        )
    _print(prices, money.currency, as_json=as_json)


@contextmanager
def _open_table(layout: Layout) -> Iterator[PriceTable]:
    """The prices, opened as the user that they belong to, who also writes the log."""
    from appliance.metering import PriceTable

    if not layout.metering.is_dir():
        raise NotFoundError(
            f"there are no prices in {layout.metering}", hint="install the node first"
        )
    with PriceTable(layout.prices_db) as table:
        yield table


def document(price: Price) -> dict[str, object]:
    """A price for JSON: micro-units for a million tokens."""
    return {
        "version": price.version,
        "model": price.model,
        "since": price.since,
        "input": price.ordinary.input,
        "cached": price.ordinary.cached,
        "output": price.ordinary.output,
        "batch_input": price.batch.input,
        "batch_cached": price.batch.cached,
        "batch_output": price.batch.output,
    }


def _amounts(price: Price) -> list[str]:
    from appliance.metering import format_money

    return [
        format_money(amount)
        for tariff in (price.ordinary, price.batch)
        for amount in (tariff.input, tariff.cached, tariff.output)
    ]


def _recorded(price: Price) -> str:
    """What an audit record says of it: input/cached/output, then the same for batches."""
    amounts = _amounts(price)
    return f"{'/'.join(amounts[:3])} batch {'/'.join(amounts[3:])}"


def _print(prices: tuple[Price, ...], currency: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"currency": currency, "prices": [document(price) for price in prices]})
        return
    columns = ["model", "version", "since", "input", "cached", "output"]
    print_table(
        [*columns, "batch input", "batch cached", "batch output"],
        [(p.model, p.version, shown(p.since), *_amounts(p)) for p in prices],
        empty="No model has a price: `appliance prices set MODEL` gives it one.",
    )
    if prices:
        out.print(f"{currency} for a million tokens")
