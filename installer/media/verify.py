"""The packager's check of written media: as a node would, and every byte from the medium itself.

Owns the choice of the anchor. Keeps no trust state: it proves what is there now, not that it is
newer than something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from appliance.trust.store import TrustStore
from installer import pyz
from installer.keyring import Keyring
from installer.media.opening import Media, open_media, require_media, verify_media
from installer.progress import Progress


@dataclass(frozen=True, slots=True)
class VerifiedMedia:
    """Media of which every byte was just read and found right."""

    media: Media
    files: int
    pyz_sha256: str
    anchor: str
    """Where the root of trust came from."""


def verify_written(path: Path, trust_directory: Path | None, progress: Progress) -> VerifiedMedia:
    """Verify the media at `path` against the root in `trust_directory`, or in their own pyz.

    Raises NotFoundError, and VerificationError naming the file.
    """
    require_media(path)
    if trust_directory is not None:
        root, anchor = Keyring(trust_directory).roots()[0].read_bytes(), str(trust_directory)
    else:
        root, anchor = pyz.root_of(path / pyz.NAME), f"{pyz.NAME} on the media"
    with TemporaryDirectory() as scratch:
        media = open_media(path, TrustStore(Path(scratch)), root, datetime.now(UTC))
    with progress.bytes("reading every byte again", media.size) as advance:
        verify_media(media, advance)
    (sha256,) = [file.sha256 for file in media.release.files if file.path == pyz.NAME]
    files = len(media.pinned) + sum(len(bundle.files) for bundle in media.bundles)
    return VerifiedMedia(media, files, sha256, anchor)
