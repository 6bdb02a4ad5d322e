"""`appliance audit content-key|open-content|match-content`: content that the log commits to."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.errors import AuditError, NotFoundError, StorageError, UsageError
from installer.cli.audit import DirectoryOption, log_directory
from installer.cli.output import JsonOption, RootOption, err, node_layout, out, print_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from appliance.audit.event import Request, Response

_RecordArgument = Annotated[
    int, typer.Argument(metavar="NUMBER", min=0, help="Number of the REQ or RES.")
]
_KEY_HINT = "--key names the file that `appliance audit content-key` wrote, not a verifier key"


def register(noun: typer.Typer) -> None:
    """Add the commands to `appliance audit`."""
    for command in (content_key, open_content, match_content):
        noun.command(command.__name__.replace("_", "-"))(command)


def content_key(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="New file for the private key.")],
    as_json: JsonOption = False,
) -> None:
    """On the auditor's machine: make the key to which content is sealed."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from appliance.fsops import create_durable

    private = X25519PrivateKey.generate()
    try:
        made = create_durable(target, _encode(private.private_bytes_raw()))
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}") from error
    if not made:
        raise UsageError(f"{target} exists", hint="name a new file")
    public = _encode(private.public_key().public_bytes_raw()).decode().strip()
    if as_json:
        print_json({"auditor_key": public, "private_key": str(target)})
    else:
        lines = ("[audit]", 'content = "sealed"', f'auditor_key = "{public}"')
        out.print("\n".join(lines), markup=False)
        err.print(
            f"note: the operator writes these lines into the node's appliance.toml; "
            f"keep {target} to yourself: nothing else opens what is sealed from then on",
            markup=False,
        )


def open_content(
    record: _RecordArgument,
    sealed: Annotated[
        Path, typer.Argument(metavar="SEALED", help="Directory of the sealed content, or a copy.")
    ],
    key: Annotated[Path, typer.Option("--key", help="The auditor's private key.")],
    directory: DirectoryOption = None,
    root: RootOption = None,
) -> None:
    """On the auditor's machine: write what was asked or answered to standard output."""
    from appliance.audit.content import unseal

    found = _record(log_directory(directory, root), record)
    if not found.content_ref:
        raise NotFoundError(f"record {record} has no sealed content")
    private = _private(key)
    path = sealed / found.content_ref
    if not path.exists():
        raise NotFoundError(
            f"{path} is not there",
            hint="name the node's audit-content, or a copy of it; if it is, the content was erased",
        )
    content = unseal(_read(path), found.content_ref, private, found.content_commit)
    sys.stdout.buffer.write(content)
    if sys.stdout.isatty():
        sys.stdout.buffer.write(b"\n")


def match_content(
    record: _RecordArgument,
    content: Annotated[
        Path, typer.Argument(metavar="FILE", help="File with what may have been asked.")
    ],
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """On the node, with audit.content = "commit": is this what a record commits to?"""
    from appliance.audit.content import committed
    from appliance.audit.event import Request

    layout = node_layout(root)
    found = _record(layout.audit, record)
    if not found.content_commit:
        raise NotFoundError(
            f"record {record} commits to no content",
            hint="there was none, or audit.content said to keep nothing then",
        )
    if found.content_ref:
        raise UsageError(
            f"the content of record {record} is sealed, and its salt with it",
            hint="the auditor opens it with `appliance audit open-content`, and compares",
        )
    part = "asked" if isinstance(found, Request) else "answered"
    if committed(layout, found.request_id, part, _read(content)) != found.content_commit:  # type: ignore[arg-type]
        raise AuditError(
            f"record {record} does not commit to this", hint="every byte counts: the body as sent"
        )
    if as_json:
        print_json({"record": record, "matches": True})
    else:
        out.print(f"record {record} commits to exactly this")


def _record(log: Path, number: int) -> Request | Response:
    from appliance.audit import read_events
    from appliance.audit.event import Request, Response

    seq, found = next(read_events(log, number), (-1, None))
    if seq != number:
        raise NotFoundError(f"there is no record {number}, or it was pruned")
    if not isinstance(found, Request | Response):
        raise UsageError(f"record {number} is no REQ or RES", hint="only those have content")
    return found


def _private(path: Path) -> X25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    try:
        data = _read(path, hint=_KEY_HINT)
        return X25519PrivateKey.from_private_bytes(base64.b64decode(data, validate=False))
    except ValueError:
        raise UsageError(f"{path} is not an auditor's private key", hint=_KEY_HINT) from None


def _encode(data: bytes) -> bytes:
    return base64.b64encode(data) + b"\n"


def _read(path: Path, *, hint: str = "") -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
