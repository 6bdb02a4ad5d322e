"""`appliance trust …`."""

import typer

app = typer.Typer(name="trust", help="", no_args_is_help=True)


@app.callback()
def group() -> None:
    """."""
