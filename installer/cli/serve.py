"""`appliance serve`."""

import logging
import sys

import typer

from installer.cli.output import RootOption, node_config


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(serve)


def serve(root: RootOption = None) -> None:
    """Run both daemons of an installation with --root in the foreground, until Ctrl-C."""
    from installer.supervise import serve as run

    config = node_config(root)
    logging.basicConfig(
        format="%(asctime)s %(name)s: %(message)s", level=logging.INFO, stream=sys.stderr
    )
    run(config.layout)
