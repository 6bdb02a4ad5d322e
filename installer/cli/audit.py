"""`appliance audit …`."""

import typer

app = typer.Typer(name="audit", help="", no_args_is_help=True)


@app.callback()
def group() -> None:
    """."""
