"""A new passphrase for private keys: the keys stay, their files are encrypted anew.

Owns the order: everything is opened before the new passphrase is asked for, and encrypted and
opened again before the first file is replaced; the keys of a trust directory change together. A
power cut leaves the old file or the new one.
Refuses keys on tokens, whose PINs are the tokens', and what the old passphrase does not open.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.errors import ConflictError, NotFoundError, UsageError
from appliance.fsops import write_durable
from installer import hardware_key
from installer.keyring import PEM, Keyring, encrypted, opened
from installer.rotation.changing import changing
from installer.rotation.pending import is_pending
from installer.rotation.publish import PRIVATE, publish


def change_passphrase(
    paths: Sequence[Path], old: bytes, ask: Callable[[], bytes]
) -> tuple[Path, ...]:
    """Encrypt with what `ask` gives what `old` opens; the files.

    `paths` are trust directories, all of whose keys that are there are meant, and key files on
    other media. Raises NotFoundError, UsageError, ConflictError while a root waits for signatures,
    SignatureError; then every file is as it was.
    """
    with ExitStack() as held:
        opened_in = {
            path: _opened(_keys_in(held.enter_context(changing(path))), old)
            for path in dict.fromkeys(paths)
            if path.is_dir()
        }
        opened_alone = _opened(
            [path for path in dict.fromkeys(paths) if path not in opened_in], old
        )
        new = ask()
        if old == new:
            raise UsageError("the new passphrase is the old one", hint="choose another one")
        directories = {path: _encrypted(keys, new) for path, keys in opened_in.items()}
        alone = _encrypted(opened_alone, new)
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


def _opened(paths: Sequence[Path], old: bytes) -> dict[Path, PrivateKeyTypes]:
    """The keys in files. Raises NotFoundError, UsageError, SignatureError."""
    return {path: _open(path, old) for path in paths}


def _open(path: Path, old: bytes) -> PrivateKeyTypes:
    if path.suffix == hardware_key.SUFFIX:
        raise UsageError(
            f"{path} names a key on a token, which has a PIN and no passphrase",
            hint="change the PIN with the tools of the token's maker",
        )
    hint = "check the passphrase; if only this key has another, name the files of the others"
    try:
        return opened(path, old, hint=hint)
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no key {path}", hint="name a trust directory, or a key file (.pem)"
        ) from None


def _encrypted(keys: Mapping[Path, PrivateKeyTypes], new: bytes) -> dict[Path, bytes]:
    """What is to be in the keys' files."""
    contents = {path: encrypted(key, new) for path, key in keys.items()}
    for path, content in contents.items():
        assert load_pem_private_key(content, new).public_key() == keys[path].public_key()
    return contents
