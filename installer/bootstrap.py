"""What `python3 appliance.pyz` runs: the `install` command and nothing else.

Owns the entry point on a node that has only a bare CPython. Refuses to import what comes with the
release; appliance.pyz does not carry it.
"""

from __future__ import annotations

import typer

from installer.cli import install
from installer.cli.app import run

app = typer.Typer(
    name="appliance.pyz",
    help="Install the appliance from this medium.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
install.register(app)


@app.callback()
def root_command() -> None:
    """Install the appliance from this medium."""


def main() -> None:
    """Entry point of appliance.pyz."""
    run(app)
