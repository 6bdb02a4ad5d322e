"""The command reference as Markdown, drawn from the registered commands."""

from __future__ import annotations

import sys

import typer.main
from typer.cli import get_docs_for_click

from installer.cli.app import app


def render() -> str:
    """Markdown of every command, argument and option of `appliance`."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="appliance")
    with context:
        text = get_docs_for_click(obj=command, ctx=context, name="appliance")
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
