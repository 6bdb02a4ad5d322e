"""`appliance install`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from installer.cli.output import RootOption, err


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(install)


def install(
    media: Annotated[Path, typer.Argument(metavar="MEDIA", help="Directory of the media.")],
    root: RootOption = None,
    allow_expired: Annotated[
        bool,
        typer.Option(
            "--allow-expired", help="Accept media whose signatures have expired; this is recorded."
        ),
    ] = False,
    processor_only: Annotated[
        bool,
        typer.Option("--processor-only", help="Leave the GPU of this node, if it has one, unused."),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON documents, one a line: events, then the result."),
    ] = False,
) -> None:
    """Install or update the node from MEDIA; running it again is harmless."""
    from appliance.config import default_root, load_config
    from installer.install import hand_over
    from installer.install import install as run
    from installer.node import node_at
    from installer.progress import progress_for

    config = load_config(root.absolute() if root is not None else default_root())
    progress = progress_for(err, sys.stdout, as_json=as_json)
    source = media.absolute()
    release = run(
        source,
        config,
        node_at(config.layout),
        progress,
        allow_expired=allow_expired,
        processor_only=processor_only,
    )
    status = hand_over(release, source, config.layout, as_json=as_json, allow_expired=allow_expired)
    raise typer.Exit(status)
