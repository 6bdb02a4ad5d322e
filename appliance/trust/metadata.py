"""The pure TUF verifier: fed bytes in the forced order, it trusts or raises.

Owns the client workflow of the TUF specification (1.0.34, section 5.3 to 5.6) for media without
a network: root chain, timestamp, snapshot, targets, delegations. Reads and writes nothing.
Stricter than the specification where offline media allow it: each file has one byte form, every
signature in it must be valid and by a key of the role (so no byte goes unchecked), one key counts
once whatever its ids, and one version number means one content.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

from securesystemslib.exceptions import UnverifiedSignatureError
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import (
    Key,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError, SerializationError

from appliance.errors import MetadataError

MAX_METADATA_BYTES = 4 * 1024 * 1024
ISSUED_AT = "issued_at"
"""Our field of the timestamp: when the media were signed, written in TIME_FORMAT."""
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
DELEGATED_ROLES = ("appliance", "models")
ROLES = ("timestamp", "snapshot", "targets", *DELEGATED_ROLES)
"""The forced order, after the roots."""
_SCHEMES = frozenset({"ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384"})
_FRESH_MEDIA = "get fresh media from the packager"
_OTHER_KEYS = (
    "nobody who is trusted here signed them: they are another packager's media, forged, or of keys "
    "that were made anew; ask the packager, and take media with the fingerprint that you were given"
)

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


class TrustedMetadata:
    """What has verified so far. Call the `update_` methods in the order they are written.

    `stale` collects the roles that had expired and were let through by `allow_expired`.
    """

    def __init__(self, root: bytes, now: datetime, *, allow_expired: bool = False) -> None:
        """Trust `root` as the anchor. `now` is the system's idea of the time, in UTC."""
        self.now = now
        self.stale: list[str] = []
        self._allow_expired = allow_expired
        self._bytes: dict[str, bytes] = {}
        anchor = _parse(root, Root, "root")
        # Officers who left have signed it as well, for nodes that know the root before it.
        _verify(anchor, [anchor.signed], "root", by_others=True)
        self.root: Root = anchor.signed
        self._bytes["root"] = root
        self.timestamp: Timestamp | None = None
        self.snapshot: Snapshot | None = None
        self.targets: dict[str, Targets] = {}

    def bytes_of(self, role: str) -> bytes:
        """The verified bytes of `role`."""
        return self._bytes[role]

    def update_root(self, data: bytes) -> None:
        """5.3: the next root, signed by the threshold of the trusted one and by its own."""
        name = f"{self.root.version + 1}.root"
        new = _parse(data, Root, name)
        if new.signed.version != self.root.version + 1:
            raise _refused(name, f"it is version {new.signed.version}")
        _verify(new, [self.root, new.signed], "root", name=name)
        self.root = new.signed
        self._bytes["root"] = data

    def recall(
        self, timestamp: bytes | None, snapshot: bytes | None, former_roots: Sequence[bytes]
    ) -> None:
        """Load what an earlier import verified, to compare with what comes now.

        5.3.11: state that only a former root's keys signed is dropped, which is how a packager
        recovers from a fast-forward attack: by rotating those keys. Raises MetadataError for
        state that no root ever signed.
        """
        former = [_parse(data, Root, "root").signed for data in former_roots]
        old_timestamp = self._recalled(timestamp, Timestamp, former)
        old_snapshot = self._recalled(snapshot, Snapshot, former)
        if old_timestamp and (old_snapshot or snapshot is None):
            self.timestamp, self.snapshot = old_timestamp, old_snapshot
            self.now = max(self.now, issued_at(old_timestamp))

    @property
    def expires(self) -> datetime:
        """When the first of the verified signatures expires."""
        assert self.timestamp is not None
        assert self.snapshot is not None
        signed: list[Signed] = [self.root, self.timestamp, self.snapshot, *self.targets.values()]
        return min(one.expires for one in signed)

    def update(self, role: str, data: bytes) -> None:
        """The `update_` method for `role`, one of ROLES."""
        if role in DELEGATED_ROLES:
            self.update_delegated(role, data)
        else:
            {
                "timestamp": self.update_timestamp,
                "snapshot": self.update_snapshot,
                "targets": self.update_targets,
            }[role](data)

    def update_timestamp(self, data: bytes) -> None:
        """5.4: never an older timestamp, nor one that names an older snapshot.

        The time cannot be earlier than when the timestamp was signed, whatever the clock says.
        """
        new = _parse(data, Timestamp, "timestamp")
        _verify(new, [self.root], "timestamp")
        self.now = max(self.now, issued_at(new.signed))
        self._check_expiry(self.root, "root")
        if (old := self.timestamp) is not None:
            _check_version("timestamp", old.version, new.signed.version)
            _check_version("snapshot", old.snapshot_meta.version, new.signed.snapshot_meta.version)
            if old.version == new.signed.version and self.bytes_of("timestamp") != data:
                raise _equivocation("timestamp", old.version)
        self.timestamp = new.signed
        self._bytes["timestamp"] = data
        self._check_expiry(new.signed, "timestamp")

    def update_snapshot(self, data: bytes) -> None:
        """5.5: exactly the snapshot that the timestamp names; no role in it goes back."""
        assert self.timestamp is not None, "the timestamp comes before the snapshot"
        new = _parse(data, Snapshot, "snapshot")
        self._check_pinned(self.timestamp.snapshot_meta, data, new.signed, "snapshot")
        _verify(new, [self.root], "snapshot")
        if (old := self.snapshot) is not None:
            if old.version == new.signed.version and self.bytes_of("snapshot") != data:
                raise _equivocation("snapshot", old.version)
            _compare_snapshots(old, new.signed)
        self.snapshot = new.signed
        self._bytes["snapshot"] = data
        self._check_expiry(new.signed, "snapshot")

    def update_targets(self, data: bytes) -> None:
        """5.6: exactly the targets that the snapshot names, signed by the root's targets keys."""
        self._add_targets(data, "targets", self.root)

    def update_delegated(self, role: str, data: bytes) -> None:
        """5.6.7: as `update_targets`, for a role that the targets delegate to."""
        targets = self.targets["targets"]
        if targets.delegations is None or role not in (targets.delegations.roles or {}):
            raise _refused(role, "no role delegates to it")
        self._add_targets(data, role, targets)
        for path in self.targets[role].targets:
            if not targets.delegations.roles[role].is_delegated_path(path):  # type: ignore[index]
                raise _refused(role, f"it lists {path}, which is not delegated to it")

    def _add_targets(self, data: bytes, role: str, delegator: Root | Targets) -> None:
        assert self.snapshot is not None, "the snapshot comes before the targets"
        meta = self.snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise _refused("snapshot", f"it does not name {role}.json")
        new = _parse(data, Targets, role)
        self._check_pinned(meta, data, new.signed, role)
        _verify(new, [delegator], role)
        self.targets[role] = new.signed
        self._bytes[role] = data
        self._check_expiry(new.signed, role)

    def _recalled(self, data: bytes | None, kind: type[S], former: Sequence[Root]) -> S | None:
        if data is None:
            return None
        role = kind.type
        old = _parse(data, kind, role)
        self._bytes[role] = data
        for root in (self.root, *former):
            try:
                _verify(old, [root], role)
            except MetadataError:
                continue
            return old.signed if root is self.root else None
        raise _refused(role, "the copy kept on this node is damaged")

    def _check_pinned(self, meta: MetaFile, data: bytes, signed: Signed, role: str) -> None:
        if meta.length is None or not meta.hashes or "sha256" not in meta.hashes:
            raise _refused(role, "nothing pins its length and SHA-256")
        try:
            meta.verify_length_and_hashes(data)
        except LengthOrHashMismatchError as error:
            raise _refused(role, str(error)) from None
        if signed.version != meta.version:
            raise _refused(role, f"it is version {signed.version}, not {meta.version}")

    def _check_expiry(self, signed: Signed, role: str) -> None:
        if not signed.is_expired(self.now):
            return
        if not self._allow_expired:
            raise MetadataError(
                f"the signature of {role} expired on {signed.expires:%Y-%m-%d}, "
                f"and here it is {self.now:%Y-%m-%d}",
                path=path_of(role),
                code="metadata_expired",
                hint="get fresh media from the packager, or correct the clock of this machine; "
                "models that are installed already keep running",
            )
        self.stale.append(role)


def issued_at(timestamp: Timestamp) -> datetime:
    """When the media were signed. Raises MetadataError if the timestamp does not say so."""
    text = timestamp.unrecognized_fields.get(ISSUED_AT)
    try:
        return datetime.strptime(str(text), TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise _refused("timestamp", f"its {ISSUED_AT} is {text!r}") from None


def parse_timestamp(data: bytes) -> Timestamp:
    """A timestamp that was verified before. Raises MetadataError if it is damaged."""
    return _parse(data, Timestamp, "timestamp").signed


def path_of(role: str) -> str:
    """Where the metadata of `role` are, relative to the media; `root` means the anchor."""
    return "appliance.pyz" if role == "root" else f"metadata/{role}.json"


def _parse(data: bytes, kind: type[S], role: str) -> Metadata[S]:
    if len(data) > MAX_METADATA_BYTES:
        raise _refused(role, f"it is {len(data)} bytes long")
    try:
        metadata: Metadata[S] = Metadata.from_bytes(data)
        canonical = metadata.to_bytes()
        signable = metadata.signed_bytes
    except (
        *(DeserializationError, SerializationError),
        *(ValueError, LookupError, TypeError, RecursionError),
    ) as error:
        raise _refused(role, str(error)) from None
    if metadata.signed.type != kind.type:
        raise _refused(role, f"it holds {metadata.signed.type} metadata")
    if canonical != data or not signable or metadata.unrecognized_fields:
        raise _refused(role, "it is not in canonical form")
    return metadata


def _verify(
    metadata: Metadata[S],
    delegators: Sequence[Root | Targets],
    role: str,
    *,
    name: str = "",
    by_others: bool = False,
) -> None:
    """The threshold of each delegator is met, and there is no signature that none accepts.

    `by_others`: but for signatures by keys that none of them names, which cannot be checked.
    """
    name = name or role
    payload = metadata.signed_bytes
    known: dict[str, Key] = {}
    for delegator in delegators:
        try:
            keys = _keys(delegator, role)
        except ValueError as error:
            raise _refused(name, str(error)) from None
        signed = sum(_verifies(key, metadata, payload) for keyid, key in keys.items())
        threshold = delegator.get_delegated_role(role).threshold
        if signed < threshold:
            raise _refused(
                name,
                f"{signed} valid signatures where {threshold} are needed",
                hint=_FRESH_MEDIA if keys.keys() & metadata.signatures.keys() else _OTHER_KEYS,
            )
        known |= keys
    for keyid, signature in metadata.signatures.items():
        if by_others and keyid not in known:
            continue
        if keyid not in known or not _verifies(known[keyid], metadata, payload):
            raise _refused(name, f"its signature by the key {keyid!s:.12} is not valid")
        if signature.unrecognized_fields or signature.signature != signature.signature.lower():
            raise _refused(name, "a signature is not in canonical form")


def _keys(delegator: Root | Targets, role: str) -> dict[str, Key]:
    """Key id -> key of `role`. Raises ValueError if it has weak, missing or repeated keys."""
    entry: Role = delegator.get_delegated_role(role)
    keys = {keyid: delegator.get_key(keyid) for keyid in entry.keyids}
    for key in keys.values():
        if key.scheme not in _SCHEMES:
            raise ValueError(f"the key scheme {key.scheme} is not accepted")
    if len({str(key.keyval.get("public")) for key in keys.values()}) != len(keys):
        raise ValueError(f"one key stands under two ids for {role}")
    return keys


def _verifies(key: Key, metadata: Metadata[S], payload: bytes) -> bool:
    signature = metadata.signatures.get(key.keyid)
    if signature is None:
        return False
    try:
        key.verify_signature(signature, payload)
    except UnverifiedSignatureError:
        return False
    return True


def _compare_snapshots(old: Snapshot, new: Snapshot) -> None:
    for filename, before in old.meta.items():
        role = filename.removesuffix(".json")
        after = new.meta.get(filename)
        if after is None:
            raise _refused("snapshot", f"it no longer names {filename}")
        _check_version(role, before.version, after.version)
        if before.version == after.version and before.hashes != after.hashes:
            raise _equivocation(role, before.version)


def _check_version(role: str, old: int, new: int) -> None:
    if new < old:
        raise MetadataError(
            f"{path_of(role)} is version {new}, older than {old}, which was imported here before",
            path=path_of(role),
            code="metadata_rollback",
            hint="use newer media; going back needs none: `appliance models rollback` goes to the "
            "former models, `appliance releases rollback` to the former release",
        )


def _equivocation(role: str, version: int) -> MetadataError:
    return MetadataError(
        f"{path_of(role)} has version {version} like one imported here before, but differs from it",
        path=path_of(role),
        code="metadata_equivocation",
        hint="two different media carry one version: ask the packager which one is genuine",
    )


def _refused(role: str, reason: str, *, hint: str = _FRESH_MEDIA) -> MetadataError:
    return MetadataError(f"{path_of(role)} was refused: {reason}", path=path_of(role), hint=hint)
