"""Which keys are at hand: in the directory, on an officer's medium, on a token that is connected.

Refuses a passphrase that opens none of the keys that are here, and keys that are nobody's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from securesystemslib.signer import Signer

from appliance.errors import NotFoundError, SignatureError, UsageError
from installer import hardware_key
from installer.keyring import PEM, Keyring, signer_in
from installer.rotation.officers import is_officer

_FORGOTTEN = (
    "; where nobody knows that of the keys in private/, move these files aside and replace all of "
    "them: first targets, snapshot and timestamp, then appliance, models and model-signer"
)


def check_passphrase(keyring: Keyring, passphrase: bytes) -> None:
    """It opens a key that is here, if one is. Raises SignatureError."""
    here = [path for path in keyring.key_files("*") if path.suffix == PEM]
    # An officer may have another one for a key that the others never open.
    shared = [path for path in here if not is_officer(path.stem)] or here
    if not shared:
        return
    try:
        signer_in(shared[0], passphrase)
    except SignatureError as error:
        error.hint += _FORGOTTEN
        raise


def officers_at_hand(
    keyring: Keyring, given: Sequence[Path], passphrase: bytes, officers: Collection[str]
) -> list[Signer]:
    """The keys in the files `given`, and those in the directory, of the `officers` (key IDs).

    Raises UsageError, SignatureError for a file that was given and has another key.
    """
    signers = [_given(path, passphrase, officers) for path in given]
    for path in keyring.key_files("officer-*"):
        signer = _if_connected(path, passphrase)
        if signer is not None and signer.public_key.keyid in officers:
            signers.append(signer)
    return signers


def _given(path: Path, passphrase: bytes, officers: Collection[str]) -> Signer:
    try:
        signer = signer_in(path, passphrase)
    except OSError as error:
        raise UsageError(
            f"the key {path} cannot be read: {error.strerror}",
            hint="connect the officer's medium, and name the file on it",
        ) from None
    if signer.public_key.keyid not in officers:
        raise SignatureError(
            f"the key {path} is no officer's: it was replaced, or is another trust directory's",
            path=path.name,
            hint="`appliance trust show DIR` lists the IDs of the officers' keys",
        )
    return signer


def _if_connected(path: Path, passphrase: bytes) -> Signer | None:
    """The key of a file in the directory; None if it is on a token that is not connected."""
    try:
        return signer_in(path, passphrase)
    except NotFoundError as error:
        if error.code == hardware_key.ABSENT:
            return None
        raise
