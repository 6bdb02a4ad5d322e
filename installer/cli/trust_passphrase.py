"""`appliance trust passphrase`: another passphrase for the packager's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from installer.cli.output import JsonOption, out, print_json
from installer.cli.trust import PassphraseFileOption


def register(noun: typer.Typer) -> None:
    """Add the command to `appliance trust`."""
    noun.command()(passphrase)


def passphrase(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR|FILE...", help="A trust directory, or key files on other media."
        ),
    ],
    passphrase_file: PassphraseFileOption = None,
    new_passphrase_file: Annotated[
        Path | None,
        typer.Option("--new-passphrase-file", help="File that holds the new passphrase."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Encrypt keys with another passphrase; the keys themselves stay.

    Of a directory all keys that are there, together. Copies made before, such as backups, still
    open with the old passphrase: if somebody knows it, rotate the keys.
    """
    from installer.passphrase import following_passphrase, read_passphrase
    from installer.rotation.passphrase import change_passphrase

    old = read_passphrase(passphrase_file)
    changed = change_passphrase(
        [path.absolute() for path in paths], old, lambda: following_passphrase(new_passphrase_file)
    )
    if as_json:
        print_json({"changed": [str(path) for path in changed]})
        return
    for path in changed:
        out.print(f"{path} has the new passphrase", markup=False)
    out.print("Back up what has changed; older copies still open with the old passphrase.")
