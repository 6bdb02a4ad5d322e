"""A root that waits until enough officers have signed it.

    pending/root.json          the next root with the signatures that it has so far
    pending/private/NAME.pem   the new keys that it names, or NAME.token for one on a token

Owns this directory, and the moment at which the root takes effect: a threshold of the old and of
the new officers has signed (TUF specification 1.0.34, section 5.3.4), which the node's own verifier
says. Until then everything is signed with the old keys. Refuses signatures by anybody else's keys.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root

from appliance.errors import MetadataError, NotFoundError, SignatureError
from appliance.fsops import fsync_dir, make_dirs, write_durable
from appliance.trust.metadata import TrustedMetadata
from installer.keyring import Keyring, add_signature, signer_in
from installer.rotation.keys import NewKey, key_files
from installer.rotation.officers import TOP_ROLES, officers_of
from installer.rotation.publish import PRIVATE, publish
from installer.rotation.targets import ROLE as TARGETS
from installer.rotation.targets import TargetsRevision

DIRECTORY = "pending"
_ROOT = "root.json"


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a pending root is.

    Attributes:
        version: of the pending root.
        changes: what is new in it, for people.
        signed: the officers whose signature it has.
        missing: how many more of the present officers must sign, and of the new ones.
        may_sign: the officers who could and have not.
    """

    version: int
    changes: tuple[str, ...]
    signed: tuple[str, ...]
    missing: int
    missing_new: int
    may_sign: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether nobody more is needed."""
        return self.missing == 0 and self.missing_new == 0


class PendingRoot:
    """The pending root of `keyring`. Hold the trust directory's lock."""

    def __init__(self, keyring: Keyring) -> None:
        """Raises NotFoundError if nothing is pending, MetadataError if it is damaged."""
        self._keyring = keyring
        self._directory = keyring.directory / DIRECTORY
        self._old = keyring.root().signed
        path = self._directory / _ROOT
        if not path.is_file():
            raise NotFoundError(
                "no change of the root waits for signatures",
                hint="`appliance trust rotate DIR NAME` begins one",
                code="nothing_pending",
            )
        try:
            self._metadata: Metadata[Root] = Metadata.from_bytes(path.read_bytes())
        except Exception as error:
            raise MetadataError(
                f"{path} is damaged: {error}",
                path=_ROOT,
                hint="`appliance trust discard DIR` drops the change; then begin it again",
            ) from error
        self._new = self._metadata.signed

    @property
    def version(self) -> int:
        """Of the pending root."""
        return self._new.version

    @property
    def officers(self) -> dict[str, str]:
        """Key id -> name of each officer, those who go and those who come."""
        old, new = ({v: k for k, v in officers_of(r).items()} for r in (self._old, self._new))
        kept = {keyid: name for keyid, name in old.items() if keyid in new}
        going = {keyid: f"{name} (old key)" for keyid, name in old.items() if keyid not in new}
        coming = {keyid: f"{name} (new key)" for keyid, name in new.items() if keyid not in old}
        return kept | going | coming

    @classmethod
    def begin(
        cls, keyring: Keyring, root: Metadata[Root], keys: Mapping[str, NewKey]
    ) -> PendingRoot:
        """Let `root` wait, as far as it is signed, with the new `keys` by name.

        Drops what waited before.
        """
        directory = keyring.directory / DIRECTORY
        stage = directory.with_name(f".{DIRECTORY}.partial")
        for old in (stage, directory):
            shutil.rmtree(old, ignore_errors=True)
        make_dirs(stage / PRIVATE)
        for name, key in keys.items():
            write_durable(stage / f"{PRIVATE}{name}{key.suffix}", key.content, mode=0o600)
        write_durable(stage / _ROOT, root.to_bytes(), mode=0o644)
        stage.rename(directory)
        fsync_dir(keyring.directory)
        return cls(keyring)

    def sign(self, signers: Iterable[Signer]) -> tuple[str, ...]:
        """Add signatures; the names of those who signed. Raises SignatureError."""
        names = []
        for signer in signers:
            names.append(self._name_of(signer.public_key.keyid))
            add_signature(self._metadata, signer, append=True)
        write_durable(self._directory / _ROOT, self._metadata.to_bytes(), mode=0o644)
        return tuple(names)

    def standing(self) -> Standing:
        """How far it is."""
        signed = set(self._metadata.signatures)
        everyone = self.officers
        return Standing(
            version=self._new.version,
            changes=changes(self._old, self._new),
            signed=tuple(name for keyid, name in everyone.items() if keyid in signed),
            missing=_missing(self._old, signed),
            missing_new=_missing(self._new, signed),
            may_sign=tuple(name for keyid, name in everyone.items() if keyid not in signed),
        )

    def take_effect(self, passphrase: bytes, now: datetime) -> None:
        """Make it the root. `passphrase` opens a new targets key, if there is one.

        Raises MetadataError if signatures are missing, SignatureError about the passphrase.
        """
        data = self._metadata.to_bytes()
        anchor = self._keyring.roots()[-1].read_bytes()
        TrustedMetadata(anchor, now).update_root(data)
        files = {f"metadata/{self._new.version}.root.json": data}
        private = {path.stem: path for path in (self._directory / PRIVATE).iterdir()}
        for name, path in private.items():
            files |= key_files(name, path.suffix, path.read_bytes())
        if TARGETS in private:
            signer = signer_in(private[TARGETS], passphrase)
            files |= TargetsRevision(self._keyring, now).file(signer)
        publish(self._keyring.directory, files)
        self.discard()

    def discard(self) -> None:
        """Drop it, with the new keys, which nothing names."""
        shutil.rmtree(self._directory)
        fsync_dir(self._keyring.directory)

    def _name_of(self, keyid: str) -> str:
        name = self.officers.get(keyid)
        if name is None:
            raise SignatureError(
                f"the key {keyid:.12} is no officer's of root {self._old.version} nor of "
                f"root {self._new.version}",
                hint="name the key file of an officer of this trust directory",
            )
        return name


def is_pending(keyring: Keyring) -> bool:
    """Whether a root waits; one that took effect just before a crash does not."""
    try:
        return PendingRoot(keyring).version > keyring.root().signed.version
    except NotFoundError:
        return False


def changes(old: Root, new: Root) -> tuple[str, ...]:
    """What `new` changes, for people, in a fixed order."""
    before, after = officers_of(old), officers_of(new)
    found = [f"{name} leaves" for name in before if name not in after]
    found += [f"{name} joins" for name in after if name not in before]
    replaced = [name for name in before if name in after and before[name] != after[name]]
    replaced += [role for role in TOP_ROLES if old.roles[role].keyids != new.roles[role].keyids]
    found += [f"{name} has a new key" for name in replaced]
    thresholds = [root.roles["root"].threshold for root in (old, new)]
    if thresholds[0] != thresholds[1]:
        found.append(f"{thresholds[1]} officers must agree, not {thresholds[0]}")
    return (*found, f"the root holds until {new.expires:%Y-%m-%d}")


def _missing(root: Root, signed: set[str]) -> int:
    role = root.roles["root"]
    return max(0, role.threshold - len(signed.intersection(role.keyids)))
