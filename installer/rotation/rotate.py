"""Replacing keys, changing who the officers are, renewing the root.

Owns which signatures each change takes: keys of the delegated roles and model signers need the
release manager, everything else the officers. Refuses a second change of the root while one waits,
and a passphrase that opens none of the keys that are here: new keys would be lost to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Signer

from appliance.errors import ConflictError, NotFoundError, UsageError
from appliance.fsops import exclusive_lock
from appliance.trust.metadata import DELEGATED_ROLES
from appliance.trust.model_signer import TARGET, ModelSigner, encode_signers
from installer import hardware_key
from installer.keyring import MODEL_SIGNER, PEM, Keyring, signer_in
from installer.rotation.keys import NewKey, key_files, new_key, new_model_signer
from installer.rotation.officers import TOP_ROLES, NextRoot, is_officer, officers_of
from installer.rotation.pending import PendingRoot, Standing, is_pending
from installer.rotation.publish import complete, publish
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


@contextmanager
def changing(directory: Path) -> Iterator[Keyring]:
    """The trust directory, held against other changes; one that was interrupted is completed.

    Raises NotFoundError, LockedError.
    """
    if not (directory / "metadata").is_dir():
        Keyring(directory)  # says what is wrong
    with exclusive_lock(directory / ".lock"):
        complete(directory)
        yield Keyring(directory)


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
        _check_passphrase(keyring, passphrase)
        if at_root:
            _refuse_second(keyring)
        by_targets = [name for name in names if name in _BY_TARGETS]
        signers = _officers_here(keyring, officer_keys, passphrase) if at_root else []
        keys = {
            name: new_key(passphrase, tokens.get(name)) for name in names if name != MODEL_SIGNER
        }
        if by_targets:
            _replace_by_targets(keyring, by_targets, keys, passphrase, now, overlap=overlap)
        if not at_root:
            return Changed(tuple(by_targets))
        keys = {name: keys[name] for name in at_root}

        def change(root: NextRoot) -> None:
            for name, key in keys.items():
                root.replace(name, key.signer.public_key)

        standing = _change_root(keyring, change, keys, signers, passphrase, now)
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
        _check_passphrase(keyring, passphrase)
        _refuse_second(keyring)
        signers = _officers_here(keyring, officer_keys, passphrase)
        keys: dict[str, NewKey] = {}

        def change(root: NextRoot) -> None:
            for _ in range(add):
                key = new_key(passphrase)
                keys[root.add_officer(key.signer.public_key)] = key
            for name in remove:
                root.remove_officer(name)
            if threshold is not None:
                root.set_threshold(threshold)

        return Changed(root=_change_root(keyring, change, keys, signers, passphrase, now))


def sign(
    directory: Path, passphrase: bytes, now: datetime, *, officer_keys: Sequence[Path] = ()
) -> Changed:
    """Sign the root that waits with the officers' keys that are here; with enough it takes effect.

    Raises NotFoundError if none waits, SignatureError about a key.
    """
    with changing(directory) as keyring:
        pending = PendingRoot(keyring)
        pending.sign(_officers_here(keyring, officer_keys, passphrase, pending))
        return Changed(root=_take_effect_if_complete(pending, keyring, passphrase, now))


def discard(directory: Path) -> Standing:
    """Drop the root that waits; how far it was. Raises NotFoundError if none waits."""
    with changing(directory) as keyring:
        pending = PendingRoot(keyring)
        standing = pending.standing()
        pending.discard()
        return standing


def retire(directory: Path, name: str, passphrase: bytes, now: datetime) -> tuple[str, ...]:
    """Accept the model signer `name` no more; the names of those that are left.

    Raises NotFoundError, ConflictError for the last one, SignatureError.
    """
    with changing(directory) as keyring:
        signers = keyring.model_signers()
        left = [signer for signer in signers if signer.name != name]
        if len(left) == len(signers):
            raise NotFoundError(
                f"there is no model signer {name}",
                hint=f"those accepted are {', '.join(signer.name for signer in signers)}",
            )
        if not left:
            raise ConflictError(
                f"{name} is the only model signer",
                hint=f"replace it: `appliance trust rotate DIR {MODEL_SIGNER}`",
            )
        signer = targets_signer(keyring, passphrase)
        revision = TargetsRevision(keyring, now)
        publish(keyring.directory, _pinned_signers(revision, left) | revision.file(signer))
        return tuple(signer.name for signer in left)


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


def _check_passphrase(keyring: Keyring, passphrase: bytes) -> None:
    """It opens a key that is here, if one is. Raises SignatureError."""
    here = [path for path in keyring.key_files("*") if path.suffix == PEM]
    # An officer may have another one for a key that the others never open.
    shared = [path for path in here if not is_officer(path.stem)] or here
    if shared:
        signer_in(shared[0], passphrase)


def _refuse_second(keyring: Keyring) -> None:
    if is_pending(keyring):
        raise ConflictError(
            f"root {PendingRoot(keyring).version} waits for signatures already",
            hint="let the officers sign it (`appliance trust sign DIR`), or drop it "
            "(`appliance trust discard DIR`), then begin again",
            code="root_pending",
        )


def _officers_here(
    keyring: Keyring, given: Sequence[Path], passphrase: bytes, pending: PendingRoot | None = None
) -> list[Signer]:
    """The officers' keys in the files `given`, and those that lie in the directory."""
    signers = []
    for path in given:
        try:
            signers.append(signer_in(path, passphrase))
        except OSError as error:
            raise UsageError(
                f"the key {path} cannot be read: {error.strerror}",
                hint="connect the officer's medium, and name the file on it",
            ) from None
    officers = set(officers_of(keyring.root().signed).values()) | set(
        pending.officers if pending is not None else ()
    )
    for path in keyring.key_files("officer-*"):
        signer = _at_hand(path, passphrase)
        if signer is not None and signer.public_key.keyid in officers:
            signers.append(signer)
    return signers


def _at_hand(path: Path, passphrase: bytes) -> Signer | None:
    """The key of a file in the directory; None if it is on a token that is not connected."""
    try:
        return signer_in(path, passphrase)
    except NotFoundError as error:
        if error.code == hardware_key.ABSENT:
            return None
        raise


def _change_root(
    keyring: Keyring,
    change: Callable[[NextRoot], None],
    keys: Mapping[str, NewKey],
    signers: Sequence[Signer],
    passphrase: bytes,
    now: datetime,
) -> Standing:
    """Begin the next root, signed by `signers` and by the new officers among `keys`."""
    following = NextRoot(keyring.root().signed, now)
    change(following)
    following.check()
    pending = PendingRoot.begin(keyring, following.root, keys)
    coming = [key.signer for name, key in keys.items() if is_officer(name)]
    pending.sign([*signers, *coming])
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
            new, pem = new_model_signer(_next_name(former), passphrase)
            files |= _pinned_signers(revision, [*(former if overlap else ()), new])
            files |= key_files(name, PEM, pem)
        else:
            revision.replace_key(name, keys[name].signer.public_key)
            files |= keys[name].files(name)
    publish(keyring.directory, files | revision.file(signer))


def _pinned_signers(revision: TargetsRevision, signers: Sequence[ModelSigner]) -> dict[str, bytes]:
    data = encode_signers(signers)
    revision.pin({TARGET: data})
    return {f"targets/{TARGET}": data}


def _next_name(signers: Sequence[ModelSigner]) -> str:
    """`model-signer-N`, with a number after the highest of `signers`."""
    endings = [signer.name.removeprefix(f"{MODEL_SIGNER}-") for signer in signers]
    return f"{MODEL_SIGNER}-{max([1, *(int(one) for one in endings if one.isdecimal())]) + 1}"
