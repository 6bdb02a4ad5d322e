"""`appliance usage …`."""

import typer

app = typer.Typer(name="usage", help="", no_args_is_help=True)


@app.callback()
def group() -> None:
    """."""
