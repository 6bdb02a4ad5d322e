"""Taking back what was signed: a bundle or a release that nodes should not use any more.

Owns the list that the release manager signs and that every later medium carries. Refuses names
that media cannot have, and a list that would say one thing twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from appliance.errors import ConflictError, NotFoundError, UsageError
from appliance.trust.withdrawn import (
    BUNDLE,
    MAX_REASON,
    TARGET,
    Withdrawal,
    encode_withdrawn,
    listing,
)
from installer.keyring import Keyring
from installer.rotation.changing import changing
from installer.rotation.publish import publish
from installer.rotation.targets import TargetsRevision, targets_signer

_MODELS = "models"
"""The role that names the bundles on media."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


def withdraw(
    directory: Path, kind: str, name: str, reason: str, passphrase: bytes, now: datetime
) -> Withdrawal:
    """Take back the `kind` that is called `name`, see `Withdrawal`.

    Raises UsageError, ConflictError if it was taken back already, SignatureError.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not the name of a {kind}",
            hint="a bundle is NAME-VERSION, a release VERSION-ID or VERSION",
        )
    if not reason.strip() or len(reason) > MAX_REASON or not reason.isprintable():
        raise UsageError(
            f"the reason is not one line of 1 to {MAX_REASON} characters",
            hint="say in one sentence what operators should know",
        )
    entry = Withdrawal(kind, name, reason.strip().rstrip("."), f"{now:%Y-%m-%d}")

    def add(before: tuple[Withdrawal, ...]) -> tuple[Withdrawal, ...]:
        if any((one.kind, one.name) == (kind, name) for one in before):
            raise ConflictError(f"the {kind} {name} was withdrawn already")
        return (*before, entry)

    _change(directory, add, passphrase, now)
    return entry


def give_free(directory: Path, kind: str, name: str, passphrase: bytes, now: datetime) -> None:
    """Let nodes use it again, from the next media on. Raises NotFoundError, SignatureError."""

    def remove(before: tuple[Withdrawal, ...]) -> tuple[Withdrawal, ...]:
        after = tuple(one for one in before if (one.kind, one.name) != (kind, name))
        if after == before:
            raise NotFoundError(
                f"the {kind} {name} is not withdrawn",
                hint="`appliance trust show DIR` lists what is",
            )
        return after

    _change(directory, remove, passphrase, now)


def on_last_media(directory: Path) -> list[str]:
    """The bundles that the last media of these keys had, as NAME-VERSION. Raises MetadataError."""
    found = Keyring(directory).load(_MODELS)
    names = [Path(path).stem for path in found.signed.targets] if found is not None else []
    return sorted(names)


def refuse_withdrawn(keyring: Keyring, name: str, version: str) -> None:
    """Refuse to put a bundle that was taken back on media. Raises ConflictError."""
    found = keyring.withdrawn().bundle(name, version)
    if found is not None:
        raise found.refusal(
            f"{name} {version}",
            hint=f"leave it out, or give it free: `appliance trust withdraw DIR {BUNDLE} "
            f"{found.name} --undo`",
        )


def refuse_withdrawn_release(keyring: Keyring, version: str) -> None:
    """Refuse to put programs on media all of whose version was taken back. Raises ConflictError.

    One release (VERSION-ID) need not be refused: programs that were changed have another ID.
    """
    found = keyring.withdrawn().release(f"{version}-")
    if found is not None:
        raise found.refusal(
            f"release {version}", hint="build media from a checkout of a newer version"
        )


def _change(
    directory: Path,
    change: Callable[[tuple[Withdrawal, ...]], tuple[Withdrawal, ...]],
    passphrase: bytes,
    now: datetime,
) -> None:
    with changing(directory) as keyring:
        after = listing(change(keyring.withdrawn().withdrawn))
        signer = targets_signer(keyring, passphrase)
        revision = TargetsRevision(keyring, now)
        data = encode_withdrawn(after)
        revision.pin({TARGET: data})
        publish(keyring.directory, {f"targets/{TARGET}": data} | revision.file(signer))
