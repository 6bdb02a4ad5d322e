"""A new passphrase for private keys: the keys stay, their files are encrypted anew.

Owns the order: everything is opened, encrypted and opened again before the first file is replaced,
and the keys of a trust directory change together. A power cut leaves the old file or the new one.
Refuses keys on tokens, whose PINs are the tokens', and what the old passphrase does not open.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.errors import ConflictError, NotFoundError, UsageError
from appliance.fsops import write_durable
from installer import hardware_key
from installer.keyring import PEM, Keyring, encrypted, opened
from installer.rotation.changing import changing
from installer.rotation.pending import is_pending
from installer.rotation.publish import PRIVATE, publish


def change_passphrase(paths: Sequence[Path], old: bytes, new: bytes) -> tuple[Path, ...]:
    """Encrypt with `new` what `old` opens; the files.

    `paths` are trust directories, all of whose keys that are there are meant, and key files on
    other media. Raises NotFoundError, UsageError, ConflictError while a root waits for signatures,
    SignatureError; then every file is as it was.
    """
    if old == new:
        raise UsageError("the new passphrase is the old one", hint="choose another one")
    with ExitStack() as held:
        directories = {
            path: _encrypted_anew(_keys_in(held.enter_context(changing(path))), old, new)
            for path in dict.fromkeys(paths)
            if path.is_dir()
        }
        files = [path for path in dict.fromkeys(paths) if path not in directories]
        alone = _encrypted_anew(files, old, new)
        for path, content in alone.items():
            # A stick's file system may know no other mode than the one its files have.
            write_durable(path, content, mode=stat.S_IMODE(path.stat().st_mode))
        for directory, keys in directories.items():
            publish(directory, {f"{PRIVATE}{path.name}": data for path, data in keys.items()})
    return (*alone, *(path for keys in directories.values() for path in keys))


def _keys_in(keyring: Keyring) -> list[Path]:
    """The key files of a trust directory."""
    if is_pending(keyring):
        raise ConflictError(
            "new keys wait with a root for signatures, encrypted with the present passphrase",
            hint="let the officers sign it (`appliance trust sign DIR`), or drop it "
            "(`appliance trust discard DIR`), then run the command again",
            code="root_pending",
        )
    found = [path for path in keyring.key_files("*") if path.suffix == PEM]
    if not found:
        raise NotFoundError(
            f"there is no key in {keyring.directory / 'private'}",
            hint="name the key files on the media that they were moved to",
        )
    return found


def _encrypted_anew(paths: Sequence[Path], old: bytes, new: bytes) -> dict[Path, bytes]:
    return {path: _reencrypted(path, old, new) for path in paths}


def _reencrypted(path: Path, old: bytes, new: bytes) -> bytes:
    """What is to be in the file `path`. Raises NotFoundError, UsageError, SignatureError."""
    if path.suffix == hardware_key.SUFFIX:
        raise UsageError(
            f"{path} names a key on a token, which has a PIN and no passphrase",
            hint="change the PIN with the tools of the token's maker",
        )
    hint = "check the passphrase; if only this key has another, name the files of the others"
    try:
        key = opened(path, old, hint=hint)
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no key {path}", hint="name a trust directory, or a key file (.pem)"
        ) from None
    content = encrypted(key, new)
    assert load_pem_private_key(content, new).public_key() == key.public_key()
    return content
