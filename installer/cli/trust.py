"""`appliance trust …`: the packager's keys."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from installer.cli.output import JsonOption, err, out, print_fields, print_json, print_table

if TYPE_CHECKING:
    from installer.rotation.pending import Standing
    from installer.rotation.rotate import Changed
    from installer.rotation.show import Shown

PassphraseFileOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="File that holds the keys' passphrase."),
]
DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The trust directory.")]
OfficerKeysOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--officer-key",
        help="An officer's key file on another medium, or .token file; repeat for more.",
    ),
]
TokensOption = Annotated[
    list[str] | None,
    typer.Option(
        "--token",
        metavar="KEY=URI",
        help="Use the key on a PKCS #11 token, such as officer-1=hsm:2?label=Officer+1; repeat.",
    ),
]

app = typer.Typer(
    name="trust",
    help="Make, replace and retire the keys that media and bundles are signed with.",
    no_args_is_help=True,
)


class WithdrawnKind(StrEnum):
    """What can be taken back."""

    bundle = "bundle"
    release = "release"


@app.callback()
def group() -> None:
    """Make, replace and retire the keys that media and bundles are signed with."""


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="New directory for the keys.")],
    officers: Annotated[int, typer.Option(help="Officers who hold a root key each.")] = 3,
    threshold: Annotated[int, typer.Option(help="Officers needed to change any key.")] = 2,
    tokens: TokensOption = None,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the keys of every role, encrypted with one passphrase, in a new directory DIR."""
    from installer.ceremony import hold_ceremony
    from installer.passphrase import new_passphrase

    passphrase = new_passphrase(passphrase_file)
    ceremony = hold_ceremony(
        directory.absolute(),
        passphrase,
        officers=officers,
        threshold=threshold,
        tokens=_tokens(tokens),
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


@app.command()
def show(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """Show which keys count, until when, what is withdrawn, and what waits for signatures."""
    from installer.rotation.show import show as look

    shown = look(directory.absolute())
    if as_json:
        print_json(_document(shown))
        return
    issued = shown.media_issued
    print_fields(
        {
            "root": f"version {shown.root_version}, until {shown.root_expires:%Y-%m-%d}; "
            f"{shown.threshold} of {shown.officers} officers must agree",
            "root sha256": shown.root_sha256,
            "targets": f"version {shown.targets_version}, until {shown.targets_expires:%Y-%m-%d}",
            "last media": f"version {shown.media_version}, signed {issued:%Y-%m-%d}"
            if issued
            else "none yet",
        }
    )
    out.print()
    print_table(
        ["KEY", "ID", "FILE"],
        [(k.name, k.keyid[:16], k.file or "elsewhere") for k in (*shown.keys, *shown.signers)],
        empty="",
    )
    for one in shown.withdrawn:
        out.print(f"\n{one.kind} {one.name}: withdrawn on {one.day}: {one.reason}.", markup=False)
    if shown.pending is not None:
        out.print()
        _tell(shown.pending)


@app.command()
def rotate(
    directory: DirectoryArgument,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY...",
            help="officer-N, targets, snapshot, timestamp, appliance, models or model-signer.",
        ),
    ],
    officer_keys: OfficerKeysOption = None,
    tokens: TokensOption = None,
    overlap: Annotated[
        bool,
        typer.Option("--overlap", help="Accept the former model signer until it is retired."),
    ] = False,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace keys; nodes follow with the next media.

    The keys of appliance, models and the model signer need the release manager's key; all others
    a threshold of the officers', here or on media of their own (`appliance trust sign`).
    """
    from installer.passphrase import read_passphrase
    from installer.rotation.rotate import rotate as replace

    changed = replace(
        directory.absolute(),
        names,
        read_passphrase(passphrase_file),
        datetime.now(UTC),
        officer_keys=officer_keys or [],
        tokens=_tokens(tokens),
        overlap=overlap,
    )
    _finish(changed, as_json=as_json)


@app.command()
def officers(
    directory: DirectoryArgument,
    add: Annotated[int, typer.Option(min=0, help="How many officers join.")] = 0,
    remove: Annotated[
        list[str] | None, typer.Option(help="An officer who leaves; repeat for more.")
    ] = None,
    threshold: Annotated[
        int | None, typer.Option(help="How many must agree from now on; as before if left out.")
    ] = None,
    officer_keys: OfficerKeysOption = None,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let officers join or leave, or change how many must agree; without options, renew the root.

    A renewed root holds five more years.
    """
    from installer.passphrase import read_passphrase
    from installer.rotation.rotate import change_officers

    changed = change_officers(
        directory.absolute(),
        read_passphrase(passphrase_file),
        datetime.now(UTC),
        add=add,
        remove=remove or [],
        threshold=threshold,
        officer_keys=officer_keys or [],
    )
    _finish(changed, as_json=as_json)


@app.command()
def sign(
    directory: DirectoryArgument,
    officer_keys: OfficerKeysOption = None,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign the root that waits with the officers' keys at hand; with enough it takes effect."""
    from installer.passphrase import read_passphrase
    from installer.rotation.rotate import sign as add_signatures

    changed = add_signatures(
        directory.absolute(),
        read_passphrase(passphrase_file),
        datetime.now(UTC),
        officer_keys=officer_keys or [],
    )
    _finish(changed, as_json=as_json)


@app.command()
def discard(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """Drop the root that waits for signatures, and the new keys it names."""
    from installer.rotation.rotate import discard as drop

    standing = drop(directory.absolute())
    if as_json:
        print_json(asdict(standing))
    else:
        out.print(f"root {standing.version} is dropped; every key is as before")


@app.command()
def retire(
    directory: DirectoryArgument,
    name: Annotated[str, typer.Argument(metavar="SIGNER", help="Name of a model signer.")],
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accept a model signer no more; nodes follow with the next media."""
    from installer.passphrase import read_passphrase
    from installer.rotation.model_signers import retire as leave_out

    left = leave_out(
        directory.absolute(), name, read_passphrase(passphrase_file), datetime.now(UTC)
    )
    if as_json:
        print_json({"retired": name, "accepted": left})
    else:
        out.print(f"{name} is retired; accepted: {', '.join(left)}", markup=False)


@app.command()
def withdraw(
    directory: DirectoryArgument,
    kind: Annotated[
        WithdrawnKind, typer.Argument(metavar="bundle|release", help="Which of the two.")
    ],
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A bundle's NAME-VERSION; a release's VERSION-ID."),
    ],
    reason: Annotated[str, typer.Option(help="One sentence for the operators.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Give it free again.")] = False,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back a bundle or a release: nodes with the next media use it no more anew, and say so.

    What a node serves goes on until its operator changes it. VERSION alone means every release of
    that version.
    """
    from installer.passphrase import read_passphrase
    from installer.rotation import withdraw as withdrawing

    passphrase, now = read_passphrase(passphrase_file), datetime.now(UTC)
    if undo:
        withdrawing.give_free(directory.absolute(), kind.value, name, passphrase, now)
        document = {"kind": kind.value, "name": name, "withdrawn": False}
    else:
        entry = withdrawing.withdraw(
            directory.absolute(), kind.value, name, reason, passphrase, now
        )
        document = {
            "kind": entry.kind, "name": name, "withdrawn": True,
            "reason": entry.reason, "day": entry.day,
        }  # fmt: skip
    if as_json:
        print_json(document)
        return
    state = "is free again" if undo else "is withdrawn"
    out.print(f"{kind.value} {name} {state}; nodes learn it with the next media", markup=False)
    last = withdrawing.on_last_media(directory.absolute())
    if not undo and kind is WithdrawnKind.bundle and last and name not in last:
        err.print(
            f"note: the last media had no {name}, but {', '.join(last)}: if that is a slip, "
            "take it back with --undo",
            markup=False,
        )


def _tokens(words: list[str] | None) -> dict[str, str]:
    """Name of a key -> URI. Raises UsageError."""
    from appliance.errors import UsageError

    pairs = [word.partition("=") for word in words or []]
    for name, sign_, uri in pairs:
        if not (name and sign_ and uri):
            raise UsageError(
                f"{name!r} does not say which key is on which token",
                hint="for instance --token officer-1=hsm:2?label=Officer+1",
            )
    return {name: uri for name, _, uri in pairs}


def _finish(changed: "Changed", *, as_json: bool) -> None:
    if as_json:
        print_json({"new_keys": changed.done, "root": _standing(changed.root)})
        return
    for name in changed.done:
        out.print(f"{name} has a new key", markup=False)
    if changed.root is not None:
        _tell(changed.root)
    if changed.root is None or changed.root.complete:
        out.print("Back up the directory. Nodes follow with the next media.")


def _tell(standing: "Standing") -> None:
    """How far a root is, and what to do next."""
    if standing.complete:
        out.print(f"root {standing.version} holds: {'; '.join(standing.changes)}", markup=False)
        return
    out.print(
        f"root {standing.version} waits for signatures: {'; '.join(standing.changes)}", markup=False
    )
    fields = {
        "signed by": _names(standing.signed),
        "still needed": f"{standing.missing} of the present officers, "
        f"{standing.missing_new} of the new",
        "may sign": _names(standing.may_sign),
    }
    print_fields(fields)
    out.print("With an officer's medium: `appliance trust sign DIR --officer-key FILE`")


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "nobody"


def _standing(standing: "Standing | None") -> dict[str, object] | None:
    return None if standing is None else {**asdict(standing), "complete": standing.complete}


def _document(shown: "Shown") -> dict[str, object]:
    import msgspec

    document: dict[str, object] = msgspec.to_builtins(shown, enc_hook=str)
    return document
