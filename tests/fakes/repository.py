"""A TUF repository that writes media metadata: a complete one, which tests bend and sign again.

Owns keys, metadata objects and target files. `write` signs what the objects say, right or wrong,
so that a test states an attack in the terms of the specification.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from appliance.trust.metadata import DELEGATED_ROLES, ISSUED_AT, ROLES, TIME_FORMAT
from appliance.trust.model_signer import ModelSigner, encode_signers

NOW = datetime(2027, 1, 15, 12, 0, tzinfo=UTC)
TOP_LEVEL = ("targets", "snapshot", "timestamp")
CHANGING = ("appliance", "models", "snapshot", "timestamp")


def make_model_signer(name: str) -> ModelSigner:
    """A model signer whose private key nobody has."""
    public = generate_private_key(SECP256R1()).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return ModelSigner(name, pem.decode("ascii"))


class Repository:
    """Two of three officers, one key for each other role, three target files."""

    def __init__(self, *, officers: int = 3, threshold: int = 2) -> None:
        self.signers = {"root": [CryptoSigner.generate_ed25519() for _ in range(officers)]}
        self.signers |= {
            role: [CryptoSigner.generate_ed25519()] for role in (*TOP_LEVEL, *DELEGATED_ROLES)
        }
        self.root = Root(expires=NOW + timedelta(days=1000), consistent_snapshot=False)
        for role in ("root", *TOP_LEVEL):
            for signer in self.signers[role]:
                self.root.add_key(signer.public_key, role)
        self.root.roles["root"].threshold = threshold
        self.roots: dict[int, bytes] = {}
        self.publish_root(self.signers["root"])
        self.files = {
            "signers.json": encode_signers([make_model_signer("first")]),
            "appliance/release.json": b'{"release":1}',
            "models/tiny-1.0.json": b'{"model":1}',
        }
        expires = NOW + timedelta(days=100)
        self.signed: dict[str, Any] = {
            "targets": Targets(expires=expires, delegations=self._delegations()),
            "appliance": Targets(expires=expires),
            "models": Targets(expires=expires),
            "snapshot": Snapshot(expires=expires),
            "timestamp": Timestamp(
                expires=expires, unrecognized_fields={ISSUED_AT: NOW.strftime(TIME_FORMAT)}
            ),
        }

    def publish_root(self, signers: list[CryptoSigner]) -> None:
        """Sign the root as it is and add it to the chain."""
        metadata = Metadata(self.root)
        for signer in signers:
            metadata.sign(signer, append=True)
        self.roots[self.root.version] = metadata.to_bytes()

    def rotate(self, role: str) -> None:
        """Give `role` a new key in a new root, which the old and new officers sign."""
        old = list(self.signers["root"])
        replaced = self.signers[role]
        self.signers[role] = [CryptoSigner.generate_ed25519() for _ in replaced]
        for before, after in zip(replaced, self.signers[role], strict=True):
            self.root.revoke_key(before.public_key.keyid, role)
            self.root.add_key(after.public_key, role)
        self.root.version += 1
        new = [signer for signer in self.signers["root"] if signer not in old]
        self.publish_root([*old, *new])

    def set_issued_at(self, when: datetime) -> None:
        """Say in the next timestamp that the media were signed at `when`."""
        self.signed["timestamp"].unrecognized_fields[ISSUED_AT] = when.strftime(TIME_FORMAT)

    def write(self, media: Path, *, bump: Collection[str] = CHANGING) -> Path:
        """Sign everything and write it to `media`; the roles in `bump` get a new version."""
        for role in bump:
            self.signed[role].version += 1
        encoded = {}
        for role in ("targets", *DELEGATED_ROLES):
            self.signed[role].targets = {
                path: TargetFile.from_data(path, data, ["sha256"])
                for path, data in self.files.items()
                if _role_of(path) == role
            }
            encoded[role] = self.encode(role)
        self.signed["snapshot"].meta = {
            f"{role}.json": MetaFile.from_data(self.signed[role].version, data, ["sha256"])
            for role, data in encoded.items()
        }
        encoded["snapshot"] = self.encode("snapshot")
        self.signed["timestamp"].snapshot_meta = MetaFile.from_data(
            self.signed["snapshot"].version, encoded["snapshot"], ["sha256"]
        )
        encoded["timestamp"] = self.encode("timestamp")
        self._dump(media, encoded)
        return media

    def encode(self, role: str) -> bytes:
        """The bytes of `role` as it is now, signed by its keys."""
        metadata = Metadata(self.signed[role])
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def _dump(self, media: Path, encoded: dict[str, bytes]) -> None:
        files = {f"metadata/{role}.json": encoded[role] for role in ROLES}
        files |= {f"metadata/{version}.root.json": data for version, data in self.roots.items()}
        files |= {f"targets/{path}": data for path, data in self.files.items()}
        for name, data in files.items():
            (media / name).parent.mkdir(parents=True, exist_ok=True)
            (media / name).write_bytes(data)

    def _delegations(self) -> Delegations:
        keys = {role: self.signers[role][0].public_key for role in DELEGATED_ROLES}
        roles = {
            role: DelegatedRole(role, [key.keyid], 1, terminating=True, paths=[f"{role}/*"])
            for role, key in keys.items()
        }
        return Delegations({key.keyid: key for key in keys.values()}, roles)


def _role_of(path: str) -> str:
    return path.split("/")[0] if "/" in path else "targets"
