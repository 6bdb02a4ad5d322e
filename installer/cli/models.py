"""`appliance models …`."""

import typer

app = typer.Typer(name="models", help="", no_args_is_help=True)


@app.callback()
def group() -> None:
    """."""
