"""The packager's check of written media: as a node would, and every byte from the medium itself.

Owns the choice of the anchor, and what whoever made the media can do about what is wrong: a node
speaks to an operator, who cannot build them. Keeps no trust state: it proves what is there now, not
that it is newer than something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from appliance.errors import LayoutError, MetadataError, VerificationError
from appliance.trust.store import TrustStore
from installer import pyz
from installer.keyring import Keyring
from installer.media.opening import Media, open_media, require_media, verify_media
from installer.progress import Progress

_AGAIN = "copy the media again from where they were built, or build them again"
_HINTS = {
    "metadata_expired": "build media again, which signs anew, or correct the clock of this machine",
    "signer_unknown": "sign the bundle again (`appliance bundle sign`), then build media again",
}
"""By the error's code."""


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
        with _told_the_packager():
            root, anchor = pyz.root_of(path / pyz.NAME), f"{pyz.NAME} on the media"
    with _told_the_packager(), TemporaryDirectory() as scratch:
        media = open_media(path, TrustStore(Path(scratch)), root, datetime.now(UTC))
    with _told_the_packager(), progress.bytes("reading every byte again", media.size) as advance:
        verify_media(media, advance)
    (sha256,) = [file.sha256 for file in media.release.files if file.path == pyz.NAME]
    files = len(media.pinned) + sum(len(bundle.files) for bundle in media.bundles)
    return VerifiedMedia(media, files, sha256, anchor)


@contextmanager
def _told_the_packager() -> Iterator[None]:
    """What is wrong is the same as on a node; the hint is another."""
    try:
        yield
    except VerificationError as error:
        error.hint = _HINTS.get(error.code) or _hint(error)
        raise


def _hint(error: VerificationError) -> str:
    if isinstance(error, MetadataError):
        return f"name with --keys the trust directory that signed these media; else {_AGAIN}"
    if isinstance(error, LayoutError):
        return f"{_AGAIN}, with nothing else in their directory"
    return f"{_AGAIN}; a drive that alters files is worn out"
