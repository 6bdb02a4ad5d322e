"""What a trust directory says: whose keys count, until when, and what is under way.

Refuses to open a private key: says only whether its file is here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import Root

from appliance.trust.metadata import DELEGATED_ROLES, issued_at
from appliance.trust.withdrawn import Withdrawal
from installer.keyring import MODEL_SIGNER, Keyring
from installer.rotation.officers import TOP_ROLES, officers_of
from installer.rotation.pending import PendingRoot, Standing, is_pending
from installer.rotation.rotate import changing
from installer.rotation.targets import current_targets


@dataclass(frozen=True, slots=True)
class ShownKey:
    """One key. `keyid` is TUF's, of a model signer the SHA-256 of its PEM text."""

    name: str
    keyid: str
    file: str
    """Its file in `private/`, which has the key or names its token; empty if it is elsewhere."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A trust directory. Times are UTC."""

    directory: Path
    root_version: int
    root_sha256: str
    """What nodes that have followed so far show in `appliance status`."""
    root_expires: datetime
    threshold: int
    officers: int
    targets_version: int
    targets_expires: datetime
    media_version: int
    """Of the last media's timestamp; 0 before the first."""
    media_issued: datetime | None
    keys: tuple[ShownKey, ...]
    signers: tuple[ShownKey, ...]
    withdrawn: tuple[Withdrawal, ...]
    pending: Standing | None


def show(directory: Path) -> Shown:
    """Look at a trust directory; a change that was interrupted is completed first.

    Raises NotFoundError, LockedError, MetadataError, SignatureError.
    """
    with changing(directory) as keyring:
        root = keyring.root().signed
        targets = current_targets(keyring).signed
        timestamp = keyring.load("timestamp")
        return Shown(
            directory=directory,
            root_version=root.version,
            root_sha256=hashlib.sha256(keyring.roots()[-1].read_bytes()).hexdigest(),
            root_expires=root.expires,
            threshold=root.roles["root"].threshold,
            officers=len(officers_of(root)),
            targets_version=targets.version,
            targets_expires=targets.expires,
            media_version=timestamp.signed.version if timestamp else 0,
            media_issued=issued_at(timestamp.signed) if timestamp else None,
            keys=_keys(keyring, root),
            signers=_signers(keyring),
            withdrawn=keyring.withdrawn().withdrawn,
            pending=PendingRoot(keyring).standing() if is_pending(keyring) else None,
        )


def _keys(keyring: Keyring, root: Root) -> tuple[ShownKey, ...]:
    targets = current_targets(keyring).signed
    keyids = officers_of(root)
    keyids |= {role: root.roles[role].keyids[0] for role in TOP_ROLES}
    keyids |= {role: targets.get_delegated_role(role).keyids[0] for role in DELEGATED_ROLES}
    return tuple(ShownKey(name, keyid, _file(keyring, name)) for name, keyid in keyids.items())


def _signers(keyring: Keyring) -> tuple[ShownKey, ...]:
    """The accepted model signers; the last is the one whose key bundles are signed with."""
    signers = keyring.model_signers()
    file = _file(keyring, MODEL_SIGNER)
    return tuple(
        ShownKey(signer.name, signer.hint, file if signer is signers[-1] else "")
        for signer in signers
    )


def _file(keyring: Keyring, name: str) -> str:
    path = keyring.key_file(name)
    return path.name if path.exists() else ""
