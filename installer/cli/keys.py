"""`appliance keys …`."""

import typer

app = typer.Typer(name="keys", help="", no_args_is_help=True)


@app.callback()
def group() -> None:
    """."""
