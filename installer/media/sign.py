"""The signing half of media: TUF metadata over what was written, and the fingerprint sheet.

Owns versions (they only grow), expiry times and `issued_at`. Records new metadata in the trust
directory before the media are published, so that one version number never stands for two
contents, even if the machine stops in between. Refuses to sign with a targets or root signature
that would expire while these media are in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from appliance.errors import MetadataError
from appliance.fsops import write_durable
from appliance.trust.metadata import DELEGATED_ROLES, ISSUED_AT, ROLES, TIME_FORMAT
from installer.keyring import Keyring, signed_by
from installer.rotation.targets import (
    TargetsRevision,
    check_role_key,
    current_targets,
    targets_signer,
)

MEDIA_LIFETIME = timedelta(days=180)
"""How long media may be imported: the lifetime of snapshot and timestamp."""
ROLE_LIFETIME = timedelta(days=365)


class MediaSigner:
    """Signs one set of media with the keys of a trust directory."""

    def __init__(self, keyring: Keyring, passphrase: bytes, now: datetime) -> None:
        """Opens the keys at once, so that a wrong passphrase is found before the long work.

        Raises NotFoundError; SignatureError, also for a key that was replaced; MetadataError if
        root or targets expire too soon.
        """
        self._keyring = keyring
        self._now = now.replace(microsecond=0)
        self._signers = {
            role: keyring.signer(role, passphrase)
            for role in ("snapshot", "timestamp", *DELEGATED_ROLES)
        }
        for role, signer in self._signers.items():
            check_role_key(keyring, role, signer)
        self._targets = self._current_targets(passphrase)
        _check_root(keyring, now)

    def sign(self, targets: Mapping[str, bytes]) -> dict[str, bytes]:
        """File name -> bytes of the metadata over `targets` (target path -> content).

        The new metadata are in the trust directory when this returns.
        """
        made = {"targets": self._targets}
        for role in DELEGATED_ROLES:
            files = {
                path: TargetFile.from_data(path, data, ["sha256"])
                for path, data in sorted(targets.items())
                if path.startswith(f"{role}/")
            }
            made[role] = self._make(role, Targets(targets=files), ROLE_LIFETIME)
        meta = {f"{role}.json": _meta_file(data) for role, data in sorted(made.items())}
        made["snapshot"] = self._make("snapshot", Snapshot(meta=meta), MEDIA_LIFETIME)
        timestamp = Timestamp(
            snapshot_meta=_meta_file(made["snapshot"]),
            unrecognized_fields={ISSUED_AT: self._now.strftime(TIME_FORMAT)},
        )
        made["timestamp"] = self._make("timestamp", timestamp, MEDIA_LIFETIME)
        for role in reversed(ROLES):
            write_durable(self._keyring.metadata_dir / f"{role}.json", made[role], mode=0o644)
        return {f"{role}.json": made[role] for role in ROLES}

    def _make(
        self, role: str, signed: Targets | Snapshot | Timestamp, lifetime: timedelta
    ) -> bytes:
        previous = self._keyring.load(role)
        signed.version = previous.signed.version + 1 if previous else 1
        signed.expires = self._now + lifetime
        return signed_by(signed, self._signers[role])

    def _current_targets(self, passphrase: bytes) -> bytes:
        """The targets metadata, signed anew if they expire before these media do."""
        metadata = current_targets(self._keyring)
        if metadata.signed.expires >= self._now + MEDIA_LIFETIME:
            return metadata.to_bytes()
        signer = targets_signer(self._keyring, passphrase)
        return TargetsRevision(self._keyring, self._now).signed(signer)


def _meta_file(data: bytes) -> MetaFile:
    version = Metadata.from_bytes(data).signed.version
    return MetaFile.from_data(version, data, ["sha256"])


def _check_root(keyring: Keyring, now: datetime) -> None:
    root = keyring.root().signed
    if root.expires < now + MEDIA_LIFETIME:
        name = f"{root.version}.root.json"
        raise MetadataError(
            f"{name} expires on {root.expires:%Y-%m-%d}, before these media would",
            path=name,
            code="metadata_expired",
            hint="the officers must sign a new root first: `appliance trust officers DIR`",
        )
