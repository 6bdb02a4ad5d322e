"""The key ceremony: every key, and the first root and targets metadata.

Owns who signs what, and for how long. Refuses to touch a directory that has something in it:
new keys over old ones would cut off every node that trusts the old ones. The directory appears
complete or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from securesystemslib.signer import Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Root,
    TargetFile,
    Targets,
)

from appliance.errors import ConflictError, UsageError
from appliance.fsops import fsync_dir, write_durable
from appliance.trust.metadata import DELEGATED_ROLES
from appliance.trust.model_signer import TARGET, encode_signers
from installer.keyring import MODEL_SIGNER, PEM, signed_by
from installer.rotation.keys import new_key, new_model_signer
from installer.rotation.officers import ROOT_LIFETIME, TOP_ROLES, name_officers
from installer.rotation.targets import TARGETS_LIFETIME


@dataclass(frozen=True, slots=True)
class Ceremony:
    """What a ceremony made."""

    directory: Path
    officers: int
    threshold: int
    keys: tuple[str, ...]
    """Names of the private keys, without `.pem`."""
    root_sha256: str


def hold_ceremony(
    directory: Path,
    passphrase: bytes,
    *,
    officers: int = 3,
    threshold: int = 2,
    tokens: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> Ceremony:
    """Make `directory` a trust directory with new keys, all encrypted with `passphrase`.

    `tokens`: name of an officer or role -> URI of its key on a token (`hardware_key`).
    Raises UsageError for a threshold that cannot work, ConflictError if `directory` is not empty.
    """
    if not 1 <= threshold <= officers <= 16:
        raise UsageError(
            f"{threshold} of {officers} officers cannot sign",
            hint="name 1 to 16 officers, and a threshold that they can meet",
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConflictError(
            f"{directory} already holds something; keys are never overwritten",
            hint="name a new directory",
        )
    partial = directory.with_name(f".{directory.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    directory.parent.mkdir(parents=True, exist_ok=True)
    for part in (partial, *(partial / name for name in ("private", "metadata", "targets"))):
        part.mkdir(mode=0o700)
    try:
        ceremony = _fill(partial, directory, passphrase, officers, threshold, tokens or {}, now)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    fsync_dir(directory.parent)
    return ceremony


def _fill(
    partial: Path,
    directory: Path,
    passphrase: bytes,
    officers: int,
    threshold: int,
    tokens: Mapping[str, str],
    now: datetime | None,
) -> Ceremony:
    now = now or datetime.now(UTC)
    names = [f"officer-{number}" for number in range(1, officers + 1)]
    names += [*TOP_ROLES, *DELEGATED_ROLES]
    if unknown := tokens.keys() - set(names):
        raise UsageError(
            f"there is no key {min(unknown)} that could be on a token",
            hint=f"those that can are {', '.join(names)}",
        )
    keys = {name: new_key(passphrase, tokens.get(name)) for name in names}
    signers = {name: key.signer for name, key in keys.items()}
    model_signer, pem = new_model_signer(MODEL_SIGNER, passphrase)
    files = {f"{name}{key.suffix}": key.content for name, key in keys.items()}
    for file, content in (files | {f"{MODEL_SIGNER}{PEM}": pem}).items():
        write_durable(partial / "private" / file, content, mode=0o600)
    root = _root(signers, officers, threshold, now)
    write_durable(partial / "metadata/1.root.json", root, mode=0o644)
    signer_list = encode_signers([model_signer])
    write_durable(partial / "targets" / TARGET, signer_list, mode=0o644)
    targets = _targets(signers, signer_list, now)
    write_durable(partial / "metadata/targets.json", targets, mode=0o644)
    return Ceremony(
        directory=directory,
        officers=officers,
        threshold=threshold,
        keys=(*names, MODEL_SIGNER),
        root_sha256=hashlib.sha256(root).hexdigest(),
    )


def _root(signers: dict[str, Signer], officers: int, threshold: int, now: datetime) -> bytes:
    root = Root(expires=now + ROOT_LIFETIME, consistent_snapshot=False)
    names = [f"officer-{number}" for number in range(1, officers + 1)]
    for name in names:
        root.add_key(signers[name].public_key, "root")
    root.roles["root"].threshold = threshold
    for role in TOP_ROLES:
        root.add_key(signers[role].public_key, role)
    name_officers(root, {name: signers[name].public_key.keyid for name in names})
    return signed_by(root, *(signers[name] for name in names))


def _targets(signers: dict[str, Signer], signer_list: bytes, now: datetime) -> bytes:
    keys = {role: signers[role].public_key for role in DELEGATED_ROLES}
    roles = {
        role: DelegatedRole(role, [key.keyid], 1, terminating=True, paths=[f"{role}/*"])
        for role, key in keys.items()
    }
    targets = Targets(
        expires=now + TARGETS_LIFETIME,
        targets={TARGET: TargetFile.from_data(TARGET, signer_list, ["sha256"])},
        delegations=Delegations({key.keyid: key for key in keys.values()}, roles),
    )
    return signed_by(targets, signers["targets"])
