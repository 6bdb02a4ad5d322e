"""`appliance media …`."""

import typer

app = typer.Typer(name="media", help="", no_args_is_help=True)


@app.callback()
def group() -> None:
    """."""
