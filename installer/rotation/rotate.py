"""Replacing keys, changing who the officers are, renewing the root.

Owns which signatures each change takes: keys of the delegated roles and model signers need the
release manager, everything else the officers. Refuses a second change of the root while one waits,
and a passphrase that opens none of the keys that are here: new keys would be lost to it. All
signatures come before the first change: one that is refused leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root

from appliance.errors import ConflictError, NotFoundError, UsageError
from appliance.trust.metadata import DELEGATED_ROLES
from installer.keyring import MODEL_SIGNER, PEM, Keyring, add_signature
from installer.rotation.at_hand import check_passphrase, officers_at_hand
from installer.rotation.changing import changing
from installer.rotation.keys import NewKey, key_files, new_key, new_model_signer
from installer.rotation.model_signers import next_name, pinned_signers
from installer.rotation.officers import TOP_ROLES, NextRoot, is_officer, officers_of
from installer.rotation.pending import PendingRoot, Standing, is_pending
from installer.rotation.publish import publish
from installer.rotation.targets import ROLE as TARGETS
from installer.rotation.targets import TargetsRevision, targets_signer

_BY_TARGETS = (*DELEGATED_ROLES, MODEL_SIGNER)


@dataclass(frozen=True, slots=True)
class Changed:
    """What a command has changed.

    Attributes:
        done: keys that are new from now on, by name.
        root: how far a change of the root is; None if nothing of it changes.
    """

    done: tuple[str, ...] = ()
    root: Standing | None = None


def rotate(
    directory: Path,
    names: Sequence[str],
    passphrase: bytes,
    now: datetime,
    *,
    officer_keys: Sequence[Path] = (),
    tokens: Mapping[str, str] | None = None,
    overlap: bool = False,
) -> Changed:
    """Replace the keys `names`: roles, officers (`officer-2`) or the model signer.

    `officer_keys` are key files of officers on other media; those in the directory are found.
    `tokens`: name -> URI of a key on a token, which takes the old one's place (`hardware_key`).
    With `overlap` the model signer that goes is still accepted. Raises NotFoundError,
    UsageError, ConflictError, SignatureError.
    """
    with changing(directory) as keyring:
        names, tokens = _known(keyring, names), tokens or {}
        _check_tokens(tokens, names)
        at_root = [name for name in names if name not in _BY_TARGETS]
        check_passphrase(keyring, passphrase)
        by_targets = [name for name in names if name in _BY_TARGETS]
        signers: list[Signer] = []
        if at_root:
            _refuse_second(keyring)
            signers = officers_at_hand(keyring, officer_keys, passphrase, _present(keyring))
        keys = {
            name: new_key(passphrase, tokens.get(name)) for name in names if name != MODEL_SIGNER
        }
        root_keys = {name: keys[name] for name in at_root}

        def change(root: NextRoot) -> None:
            for name, key in root_keys.items():
                root.replace(name, key.signer.public_key)

        root = _signed_root(keyring, change, root_keys, signers, now) if at_root else None
        if by_targets:
            _replace_by_targets(keyring, by_targets, keys, passphrase, now, overlap=overlap)
        if root is None:
            return Changed(tuple(by_targets))
        standing = _change_root(keyring, root, root_keys, passphrase, now)
    done = (*by_targets, *(at_root if standing.complete else ()))
    return Changed(done, standing)


def change_officers(
    directory: Path,
    passphrase: bytes,
    now: datetime,
    *,
    add: int = 0,
    remove: Sequence[str] = (),
    threshold: int | None = None,
    officer_keys: Sequence[Path] = (),
) -> Changed:
    """Let officers join and leave, or change how many must agree; nothing given renews the root.

    Raises as `rotate`; UsageError for a threshold that the officers could not meet.
    """
    with changing(directory) as keyring:
        check_passphrase(keyring, passphrase)
        _refuse_second(keyring)
        signers = officers_at_hand(keyring, officer_keys, passphrase, _present(keyring))
        keys: dict[str, NewKey] = {}

        def change(root: NextRoot) -> None:
            for _ in range(add):
                key = new_key(passphrase)
                keys[root.add_officer(key.signer.public_key)] = key
            for name in remove:
                root.remove_officer(name)
            if threshold is not None:
                root.set_threshold(threshold)

        root = _signed_root(keyring, change, keys, signers, now)
        return Changed(root=_change_root(keyring, root, keys, passphrase, now))


def sign(
    directory: Path, passphrase: bytes, now: datetime, *, officer_keys: Sequence[Path] = ()
) -> Changed:
    """Sign the root that waits with the officers' keys that are here; with enough it takes effect.

    Raises NotFoundError if none waits, SignatureError about a key.
    """
    with changing(directory) as keyring:
        pending = PendingRoot(keyring)
        pending.sign(officers_at_hand(keyring, officer_keys, passphrase, pending.officers))
        return Changed(root=_take_effect_if_complete(pending, keyring, passphrase, now))


def discard(directory: Path) -> Standing:
    """Drop the root that waits; how far it was. Raises NotFoundError if none waits."""
    with changing(directory) as keyring:
        pending = PendingRoot(keyring)
        standing = pending.standing()
        pending.discard()
        return standing


def _present(keyring: Keyring) -> frozenset[str]:
    """IDs of the keys of the officers who must agree to a change."""
    return frozenset(officers_of(keyring.root().signed).values())


def _known(keyring: Keyring, names: Sequence[str]) -> list[str]:
    officers = officers_of(keyring.root().signed)
    known = (*officers, *TOP_ROLES, *_BY_TARGETS)
    if unknown := [name for name in names if name not in known]:
        raise NotFoundError(
            f"there is no key {unknown[0]}", hint=f"the keys are {', '.join(known)}"
        )
    return list(dict.fromkeys(names))


def _check_tokens(tokens: Mapping[str, str], names: Sequence[str]) -> None:
    for name in tokens:
        if name == MODEL_SIGNER or name not in names:
            raise UsageError(
                f"a token is named for {name}, "
                + ("whose key must be a file" if name == MODEL_SIGNER else "which is not replaced"),
                hint="name the token of a key that this command makes: KEY=hsm:ID?label=LABEL",
            )


def _refuse_second(keyring: Keyring) -> None:
    if is_pending(keyring):
        raise ConflictError(
            f"root {PendingRoot(keyring).version} waits for signatures already",
            hint="let the officers sign it (`appliance trust sign DIR`), or drop it "
            "(`appliance trust discard DIR`), then begin again",
            code="root_pending",
        )


def _signed_root(
    keyring: Keyring,
    change: Callable[[NextRoot], None],
    keys: Mapping[str, NewKey],
    signers: Sequence[Signer],
    now: datetime,
) -> Metadata[Root]:
    """The next root, signed by `signers` and by the new officers among `keys`.

    Changes nothing yet: a token may refuse to sign, as one does whose PIN is wrong.
    """
    following = NextRoot(keyring.root().signed, now)
    change(following)
    following.check()
    metadata = Metadata(following.root)
    coming = [key.signer for name, key in keys.items() if is_officer(name)]
    for signer in (*signers, *coming):
        add_signature(metadata, signer, append=True)
    if TARGETS in keys:
        # It will sign when the root takes effect: better to know now that it does.
        TargetsRevision(keyring, now).signed(keys[TARGETS].signer)
    return metadata


def _change_root(
    keyring: Keyring,
    root: Metadata[Root],
    keys: Mapping[str, NewKey],
    passphrase: bytes,
    now: datetime,
) -> Standing:
    """Let the next root wait, or take effect if enough have signed it."""
    pending = PendingRoot.begin(keyring, root, keys)
    return _take_effect_if_complete(pending, keyring, passphrase, now)


def _take_effect_if_complete(
    pending: PendingRoot, keyring: Keyring, passphrase: bytes, now: datetime
) -> Standing:
    standing = pending.standing()
    if standing.complete:
        pending.take_effect(passphrase, now)
        _remove_former(keyring)
    return standing


def _remove_former(keyring: Keyring) -> None:
    """Private keys of officers who are none any more."""
    officers = officers_of(keyring.root().signed)
    for path in keyring.key_files("officer-*"):
        if path.stem not in officers:
            path.unlink()


def _replace_by_targets(
    keyring: Keyring,
    names: Sequence[str],
    keys: Mapping[str, NewKey],
    passphrase: bytes,
    now: datetime,
    *,
    overlap: bool,
) -> None:
    signer = targets_signer(keyring, passphrase)
    revision = TargetsRevision(keyring, now)
    files: dict[str, bytes] = {}
    for name in names:
        if name == MODEL_SIGNER:
            former = keyring.model_signers()
            new, pem = new_model_signer(next_name(former), passphrase)
            files |= pinned_signers(revision, [*(former if overlap else ()), new])
            files |= key_files(name, PEM, pem)
        else:
            revision.replace_key(name, keys[name].signer.public_key)
            files |= keys[name].files(name)
    publish(keyring.directory, files | revision.file(signer))
