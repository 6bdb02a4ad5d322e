"""The node's trust state: the offline TUF client over a directory.

Owns what the node has verified before (every root, the last metadata of each role, the signer
list, what was withdrawn, the newest time it can be sure of) and moves it forward from media.
Refuses networks, media older than what it has seen, and expired media unless told otherwise; expiry
never stops a model that is installed. Persists each file only after it verified, so a kill leaves
a valid state.

Losing this directory reopens rollback: back it up.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import DigestError, MetadataError, NotFoundError
from appliance.fsops import make_dirs, read_regular, resolve_inside, write_durable
from appliance.trust.metadata import (
    MAX_METADATA_BYTES,
    ROLES,
    TIME_FORMAT,
    TrustedMetadata,
    issued_at,
    parse_timestamp,
    path_of,
)
from appliance.trust.model_signer import TARGET, ModelSigner, decode_signers
from appliance.trust.withdrawn import TARGET as WITHDRAWN
from appliance.trust.withdrawn import Withdrawn, decode_withdrawn, encode_withdrawn, listing

TARGETS = "targets"
MAX_TARGET_BYTES = 4 * 1024 * 1024
MAX_ROTATIONS = 256
_CLOCK = "latest_time"
_ROOT_NAME = re.compile(r"([1-9][0-9]{0,8})\.root\.json")


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file of the media that verified metadata pin. `path` is relative to the media."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Targets:
    """What the media's metadata say, verified.

    Attributes:
        media: the media's directory.
        metadata: the metadata files that were read, as they were read.
        files: target path (`models/guide-1.0.json`) -> file; a target's content is small.
        issued_at: when the media were signed, UTC.
        expires: when the first of the signatures expires, UTC.
        stale: roles that had expired and were accepted by an explicit override.
        version: version of the media's timestamp; it only grows.
    """

    media: Path
    metadata: tuple[PinnedFile, ...]
    files: dict[str, PinnedFile]
    issued_at: datetime
    expires: datetime
    stale: tuple[str, ...]
    version: int

    def read(self, target: str) -> bytes:
        """The bytes of `target`, verified. Raises NotFoundError, LayoutError, DigestError."""
        pinned = self.files.get(target)
        if pinned is None:
            raise NotFoundError(
                f"the media have no target {target}", hint="get fresh media from the packager"
            )
        path = resolve_inside(self.media, pinned.path)
        data = read_regular(path, limit=MAX_TARGET_BYTES, name=pinned.path)
        if len(data) != pinned.size or hashlib.sha256(data).hexdigest() != pinned.sha256:
            raise DigestError(
                f"{pinned.path} is not as it was signed",
                path=pinned.path,
                hint="get fresh media from the packager",
            )
        return data


@dataclass(frozen=True, slots=True)
class Anchored:
    """Whom a node believes.

    Attributes:
        root_version: of the newest root that it has followed.
        root_sha256: of that root's bytes; who made it can compare.
        media_version: of the newest media's timestamp; older ones are refused.
        issued_at: when those media were signed, UTC.
    """

    root_version: int
    root_sha256: str
    media_version: int
    issued_at: datetime


class TrustStore:
    """The trust state in one directory, which need not exist yet."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def update(
        self,
        media: Path,
        embedded_root: bytes | None,
        now: datetime,
        *,
        allow_expired: bool = False,
    ) -> Targets:
        """Verify the metadata of `media` in the forced order and keep them.

        `embedded_root` is the anchor of a node without state; `now` is the best time the caller
        knows (UTC), and never counts as earlier than what this node is sure of. Raises
        MetadataError naming the file; LayoutError, DigestError; NotFoundError without an anchor.
        """
        trusted, former = self._begin(embedded_root, now, allow_expired=allow_expired)
        former += self._walk_roots(trusted, media)
        trusted.recall(self._kept("timestamp.json"), self._kept("snapshot.json"), former)
        for role in ROLES:
            data = _read(media, role)
            trusted.update(role, data)
            self._keep(f"{role}.json", data)
        targets = _targets(trusted, media)
        signers = targets.read(TARGET)
        decode_signers(signers)
        self._keep(TARGET, signers)
        self._keep_withdrawn(targets)
        if not trusted.stale:
            self._keep(_CLOCK, trusted.now.strftime(TIME_FORMAT).encode("ascii"))
        return targets

    def anchored(self) -> Anchored | None:
        """Whom this node believes; None before the first media. Raises MetadataError."""
        roots, data = self._roots(), self._kept("timestamp.json")
        if not roots or data is None:
            return None
        timestamp = parse_timestamp(data)
        newest = max(roots)
        return Anchored(
            root_version=newest,
            root_sha256=hashlib.sha256(roots[newest]).hexdigest(),
            media_version=timestamp.version,
            issued_at=issued_at(timestamp),
        )

    def signers(self) -> tuple[ModelSigner, ...]:
        """The model signers of the last verified targets. Raises NotFoundError, SignatureError."""
        data = self._kept(TARGET)
        if data is None:
            raise NotFoundError(
                f"no media were verified here yet: {self._directory} holds no signers",
                hint="run `appliance install MEDIA` first",
            )
        return decode_signers(data)

    def withdrawn(self) -> Withdrawn:
        """What the packager has taken back, by the last verified targets. Raises MetadataError."""
        data = self._kept(WITHDRAWN)
        return listing() if data is None else decode_withdrawn(data)

    def latest_time(self) -> datetime | None:
        """The newest time this node is sure of: a signature's or an import's, whichever is later.

        An import's time counts because it lay before every expiry, so a clock that once ran years
        ahead cannot block imports for ever.
        """
        text = self._kept(_CLOCK)
        if text is None:
            return None
        try:
            return datetime.strptime(text.decode("ascii"), TIME_FORMAT).replace(tzinfo=UTC)
        except ValueError:
            raise MetadataError(
                f"{self._directory / _CLOCK} is damaged",
                path=_CLOCK,
                hint="restore the trust directory from the backup",
            ) from None

    def _keep_withdrawn(self, targets: Targets) -> None:
        """Media of a packager who never withdrew anything have no list."""
        none = encode_withdrawn(listing())
        data = targets.read(WITHDRAWN) if WITHDRAWN in targets.files else none
        decode_withdrawn(data)
        self._keep(WITHDRAWN, data)

    def _begin(
        self, embedded_root: bytes | None, now: datetime, *, allow_expired: bool
    ) -> tuple[TrustedMetadata, list[bytes]]:
        """Anchored metadata, and the roots that came before the anchor."""
        *former, newest = [*self._roots().values()] or [b""]
        anchor = newest or embedded_root
        if anchor is None:
            raise NotFoundError(
                "there is nothing to verify media with",
                hint="install with the media's own appliance.pyz, whose fingerprint you checked",
            )
        latest = self.latest_time()
        trusted = TrustedMetadata(
            anchor, max(now, latest) if latest else now, allow_expired=allow_expired
        )
        make_dirs(self._directory, mode=0o755)
        self._keep(f"{trusted.root.version}.root.json", anchor)
        return trusted, former

    def _walk_roots(self, trusted: TrustedMetadata, media: Path) -> list[bytes]:
        """5.3.3 to 5.3.9: each next root that the media have. Returns the roots left behind."""
        former: list[bytes] = []
        while (media / path_of(name := f"{trusted.root.version + 1}.root")).exists():
            if len(former) == MAX_ROTATIONS:
                raise MetadataError(
                    f"the media hold more than {MAX_ROTATIONS} new roots",
                    path=path_of(name),
                    hint="get fresh media from the packager",
                )
            former.append(trusted.bytes_of("root"))
            data = _read(media, name)
            trusted.update_root(data)
            self._keep(f"{name}.json", data)
        return former

    def _roots(self) -> dict[int, bytes]:
        """Every root kept here by its version, oldest first."""
        if not self._directory.is_dir():
            return {}
        found = {
            int(match[1]): path.read_bytes()
            for path in self._directory.iterdir()
            if (match := _ROOT_NAME.fullmatch(path.name))
        }
        return dict(sorted(found.items()))

    def _kept(self, name: str) -> bytes | None:
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def _keep(self, name: str, data: bytes) -> None:
        if self._kept(name) != data:
            write_durable(self._directory / name, data, mode=0o644)


def _read(media: Path, role: str) -> bytes:
    name = path_of(role)
    return read_regular(resolve_inside(media, name), limit=MAX_METADATA_BYTES, name=name)


def _targets(trusted: TrustedMetadata, media: Path) -> Targets:
    roles = [role for role in ROLES if role not in {"timestamp", "snapshot"}]
    files = {
        path: PinnedFile(f"{TARGETS}/{path}", target.length, target.hashes.get("sha256", ""))
        for role in roles
        for path, target in trusted.targets[role].targets.items()
    }
    metadata = tuple(
        PinnedFile(path_of(role), len(data), hashlib.sha256(data).hexdigest())
        for role in ROLES
        for data in [trusted.bytes_of(role)]
    )
    assert trusted.timestamp is not None
    return Targets(
        media=media,
        metadata=metadata,
        files=files,
        issued_at=issued_at(trusted.timestamp),
        expires=trusted.expires,
        stale=tuple(trusted.stale),
        version=trusted.timestamp.version,
    )
