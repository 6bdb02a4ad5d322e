"""`appliance bundle …`."""

import typer

app = typer.Typer(name="bundle", help="", no_args_is_help=True)


@app.callback()
def group() -> None:
    """."""
