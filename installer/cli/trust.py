"""`appliance trust …`: the packager's keys."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from installer.cli.output import JsonOption, out, print_fields, print_json

PassphraseFileOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="File that holds the keys' passphrase."),
]

app = typer.Typer(name="trust", help="Make the keys that media and bundles are signed with.")


@app.callback()
def group() -> None:
    """Make the keys that media and bundles are signed with."""


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="New directory for the keys.")],
    officers: Annotated[int, typer.Option(help="Officers who hold a root key each.")] = 3,
    threshold: Annotated[int, typer.Option(help="Officers needed to change any key.")] = 2,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the keys of every role, encrypted with one passphrase, in a new directory DIR."""
    from installer.ceremony import hold_ceremony
    from installer.passphrase import new_passphrase

    passphrase = new_passphrase(passphrase_file)
    ceremony = hold_ceremony(
        directory.absolute(), passphrase, officers=officers, threshold=threshold
    )
    if as_json:
        print_json({**asdict(ceremony), "directory": str(ceremony.directory)})
        return
    print_fields(
        {
            "keys": ceremony.directory / "private",
            "root": f"{ceremony.threshold} of {ceremony.officers} officers",
            "root sha256": ceremony.root_sha256,
        }
    )
    out.print(
        "Move each officer's key to a medium of its own, and the targets key to the release "
        "manager. Back up the rest of the directory: nodes refuse media whose versions went back."
    )
