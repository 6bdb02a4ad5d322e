"""`appliance audit export|prove|cosign|import-cosignature`: evidence that leaves the node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.errors import NotFoundError, SignatureError, StorageError
from installer.cli.audit import DirectoryOption, log_directory, show_report
from installer.cli.output import JsonOption, RootOption, node_config, out, print_fields, print_json

_DEFAULT_NAME = "auditor"


def register(noun: typer.Typer) -> None:
    """Add the commands to `appliance audit`."""
    for command in (export, prove, check_proof, cosign, import_cosignature):
        noun.command(command.__name__.replace("_", "-"))(command)


def export(
    target: Annotated[Path, typer.Argument(help="New or empty directory for the copy.")],
    directory: DirectoryOption = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the log, also while it is written, for an auditor or for tools of others."""
    from appliance.audit.export import export as export_log

    count = export_log(log_directory(directory, root), target)
    if as_json:
        print_json({"files": count, "directory": str(target)})
    else:
        out.print(f"exported: {count} files to {target}", markup=False)


def prove(
    record: Annotated[int, typer.Argument(min=0, help="Number of the record.")],
    target: Annotated[Path, typer.Argument(help="File for the proof; .leaf is put beside it.")],
    directory: DirectoryOption = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a proof that a record is in the log, for somebody who has the verifier key only."""
    from appliance.audit.proof import prove as prove_record

    proof, leaf = prove_record(log_directory(directory, root), record)
    leaf_file = target.with_name(f"{target.name}.leaf") if leaf is not None else None
    _write(target, proof.encoded())
    if leaf is not None and leaf_file is not None:
        _write(leaf_file, leaf)
    shown = {"record": record, "proof": str(target), "leaf": str(leaf_file) if leaf_file else None}
    if as_json:
        print_json(shown)
    else:
        print_fields({**shown, "leaf": leaf_file or "pruned; the proof holds for a kept copy"})


def check_proof(
    proof_file: Annotated[Path, typer.Argument(help="The proof.")],
    leaf: Annotated[Path, typer.Argument(help="The record that it proves.")],
    key: Annotated[
        str, typer.Option("--key", help="The log's newest verifier key when the proof was made.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Check a proof without the log."""
    from appliance.audit.note import Ed25519Verifier
    from appliance.audit.proof import parse_proof

    proof = parse_proof(_read(proof_file))
    try:
        head = proof.check(_read(leaf), [Ed25519Verifier.parse(key)])
    except SignatureError as error:
        raise SignatureError(
            error.message, hint="use the key that was the newest when the proof was made"
        ) from error
    if as_json:
        print_json({"ok": True, "record": proof.index, "log": head.origin, "records": head.size})
    else:
        out.print(f"verified: record {proof.index} of {head.size} in {head.origin}", markup=False)


def cosign(
    directory: Annotated[Path, typer.Argument(help="An export of the log.")],
    key: Annotated[
        str, typer.Option("--key", help="Verifier key, as the installation printed it.")
    ],
    memory: Annotated[
        Path, typer.Option("--memory", help="Your directory: key and last head of each log.")
    ],
    target: Annotated[Path, typer.Option("--out", help="File for the cosigned head.")],
    name: Annotated[
        str, typer.Option("--name", help="Name of your key, if it is made now.")
    ] = _DEFAULT_NAME,
    as_json: JsonOption = False,
) -> None:
    """On the auditor's machine: verify an export, remember its head and cosign it."""
    from appliance.audit.cosigner import Cosigner

    try:
        cosigned = Cosigner(memory, name).cosign(directory, key)
    except OSError as error:
        raise StorageError(
            f"{error.filename} cannot be used: {error.strerror}", hint="check the path"
        ) from error
    show_report(cosigned.report, as_json=as_json, continued=cosigned.continued)
    _write(target, cosigned.note)
    if not as_json:
        if not cosigned.continued:
            out.print(f"the first head of this log in {memory}: nothing to compare", markup=False)
        out.print(f"cosigned: {target}", markup=False)
        out.print(f"cosigner key  {cosigned.cosigner}", markup=False)


def import_cosignature(
    file: Annotated[Path, typer.Argument(help="The cosigned head.")],
    cosigner: Annotated[str, typer.Option("--cosigner", help="The cosigner's verifier key.")],
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a cosigned head with the node's log."""
    from appliance.audit import acting_as_owner, admin_event
    from appliance.audit.cosignature import CosignerVerifier
    from appliance.audit.cosigned import take_in

    config = node_config(root)
    note, key = _read(file), CosignerVerifier.parse(cosigner)
    try:
        with acting_as_owner(config.layout.audit):
            head, at = take_in(config.layout.audit, note, key)
    except OSError as error:
        raise StorageError(
            f"the cosigned head cannot be kept: {error.strerror}", hint="check the disk"
        ) from error
    admin_event(
        config.layout, config.audit, "audit.cosigned", target=key.name, version=str(head.size)
    )
    if as_json:
        print_json({"records": head.size, "cosigner": key.name, "cosigned_at": at})
    else:
        out.print(f"kept: {head.size} records, cosigned by {key.name}", markup=False)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
