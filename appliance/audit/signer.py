"""The audit log's signing keys on disk: one per epoch, and none but the newest.

Owns the key directory, which is never inside the log's own directory: a copy of the log holds no
secret. `audit.vkey` is the key of epoch 0, the one that an auditor pins; `audit.key` is the key
in force; `next.key` is there only while one takes over from the other (roll.py). Refuses to
replace a key otherwise, and to keep one that was replaced.

`audit.key` holds the private key in the form that Go's note tools read; after epoch 0 two lines
follow: `epoch N` and the verifier key of the epoch before, which signed what is published until
the next checkpoint.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.audit.note import Ed25519Signer, Ed25519Verifier
from appliance.errors import NotFoundError, SignatureError, StorageError
from appliance.fsops import create_durable, fsync_dir, make_dirs, write_durable

SECRET_NAME = "audit.key"  # noqa: S105
NEXT_NAME = "next.key"
VKEY_NAME = "audit.vkey"

_EPOCH = "epoch "


@dataclass(frozen=True, slots=True)
class EpochSigner:
    """A key, the number of its epoch as records name it, and the key before it."""

    epoch: int
    signer: Ed25519Signer
    previous: Ed25519Verifier | None = None

    @property
    def verifier(self) -> Ed25519Verifier:
        return self.signer.verifier

    @property
    def verifiers(self) -> Sequence[Ed25519Verifier]:
        """The keys that may have signed the newest checkpoint."""
        return [self.verifier] if self.previous is None else [self.verifier, self.previous]

    def successor(self) -> EpochSigner:
        """A new key for the epoch after this one."""
        following = Ed25519Signer.generate(self.signer.name)
        return EpochSigner(self.epoch + 1, following, self.verifier)

    @property
    def encoded(self) -> bytes:
        """The bytes of the key's file."""
        lines = [self.signer.encoded]
        if self.previous is not None:
            lines += [f"{_EPOCH}{self.epoch}", self.previous.vkey]
        return "".join(f"{line}\n" for line in lines).encode("ascii")

    @classmethod
    def parse(cls, text: str) -> EpochSigner:
        """Read `encoded`'s form. Raises SignatureError."""
        first, *rest = text.splitlines() or [""]
        signer = Ed25519Signer.parse(first)
        if not rest:
            return cls(0, signer)
        number = rest[0].removeprefix(_EPOCH)
        if len(rest) != 2 or not (number.isascii() and number.isdigit()):
            raise SignatureError("the audit signing key is damaged", hint="restore it")
        return cls(int(number), signer, Ed25519Verifier.parse(rest[1]))


class SigningKeys:
    """The key directory of one log. `in_force` may be called from any thread."""

    def __init__(self, key_dir: Path) -> None:
        """Raises NotFoundError, StorageError, SignatureError if the key is damaged."""
        self._directory = key_dir
        # The mark first: a key that is rolled in between is then read again, not taken for the new.
        mark = self._mark()
        self._loaded = load_signer(key_dir), mark

    def in_force(self) -> EpochSigner:
        """The key in force now; another process may have rolled it. Raises as the constructor."""
        key, mark = self._loaded
        now = self._mark()
        if now != mark:
            key = load_signer(self._directory)
            self._loaded = key, now
        return key

    @property
    def rolling(self) -> bool:
        """Whether a roll began that did not end."""
        return (self._directory / NEXT_NAME).exists()

    @property
    def since(self) -> float:
        """Unix time at which the key in force was made. Raises OSError."""
        return (self._directory / SECRET_NAME).stat().st_mtime

    def pending(self) -> EpochSigner | None:
        """The key that a roll was about to put in force. Raises OSError, SignatureError."""
        try:
            return EpochSigner.parse((self._directory / NEXT_NAME).read_text("ascii"))
        except FileNotFoundError:
            return None

    def prepare(self) -> EpochSigner:
        """Make the next key durable beside the one in force. Raises OSError."""
        following = self.in_force().successor()
        write_durable(self._directory / NEXT_NAME, following.encoded)
        return following

    def discard(self) -> None:
        """The roll never happened: destroy the next key. Raises OSError."""
        _destroy(self._directory / NEXT_NAME)
        (self._directory / NEXT_NAME).unlink()
        fsync_dir(self._directory)

    def promote(self) -> None:
        """Put the next key in force and destroy the one before. Raises OSError."""
        with _replacing(self._directory):
            _destroy(self._directory / SECRET_NAME)
            _take_over(self._directory)

    def _mark(self) -> tuple[int, int]:
        """Changes whenever another key is in force; a name's new file has a new inode or time."""
        try:
            found = (self._directory / SECRET_NAME).stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns


def create_signer(key_dir: Path, name: str) -> str:
    """Create the first signing key of the log called `name` and return its vkey.

    A key that exists already is kept, whatever its name. Raises SignatureError for a name that
    cannot be a key's, NotFoundError if the key was lost, since another would not continue the log,
    StorageError.
    """
    try:
        if not (key_dir / SECRET_NAME).exists():
            if (key_dir / VKEY_NAME).exists():  # it was made after the secret one
                raise NotFoundError(
                    f"the audit signing key in {key_dir} is gone",
                    hint="restore audit-key from the backup that the audit log belongs to",
                )
            signer = EpochSigner(0, Ed25519Signer.generate(name))
            make_dirs(key_dir)
            create_durable(key_dir / SECRET_NAME, signer.encoded)
        if not (key_dir / VKEY_NAME).exists():
            first = _first(load_signer(key_dir))
            create_durable(key_dir / VKEY_NAME, f"{first.vkey}\n".encode(), mode=0o644)
        return (key_dir / VKEY_NAME).read_text("ascii").strip()
    except OSError as error:
        raise StorageError(f"the audit key cannot be written: {error.strerror}") from error


def load_signer(key_dir: Path) -> EpochSigner:
    """The key in force. Raises NotFoundError, StorageError, SignatureError if it is damaged."""
    path = key_dir / SECRET_NAME
    try:
        text = path.read_text("ascii", errors="replace")
        if _is_destroyed(text):
            with _replacing(key_dir):
                text = path.read_text("ascii", errors="replace")
                if _is_destroyed(text) and (key_dir / NEXT_NAME).exists():
                    _take_over(key_dir)  # who destroyed it was killed then
                    text = path.read_text("ascii", errors="replace")
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no audit signing key in {key_dir}", hint="install the node first"
        ) from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    return EpochSigner.parse(text)


def _first(key: EpochSigner) -> Ed25519Verifier:
    if key.epoch:
        raise SignatureError(
            f"{VKEY_NAME} is missing, and the key in force is not the first one any more",
            hint="restore it from a backup or from the auditor",
        )
    return key.verifier


@contextmanager
def _replacing(key_dir: Path) -> Iterator[None]:
    """Keep others from what is done while the old key is destroyed and the next has no name yet."""
    fd = os.open(key_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _is_destroyed(text: str) -> bool:
    """Whether a key was, or is just being, overwritten."""
    return not text or "\0" in text


def _take_over(key_dir: Path) -> None:
    (key_dir / NEXT_NAME).rename(key_dir / SECRET_NAME)
    fsync_dir(key_dir)


def _destroy(path: Path) -> None:
    """Overwrite `path` in place, durably; the name stays."""
    with path.open("r+b", buffering=0) as file:
        file.write(bytes(os.fstat(file.fileno()).st_size))
        os.fsync(file.fileno())
