"""The writing of media: one directory that any file system can hold.

Owns the order: check everything that goes in, ask for room, copy while hashing, sign over what was
written, open the result as a node would, publish by one rename. Refuses bundles that no accepted
key signed, a directory that exists, and files that FAT32 could not hold.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from appliance.errors import ConflictError, StorageError, UsageError
from appliance.fsops import exclusive_lock, fsync_dir
from appliance.trust.store import TrustStore
from installer.keyring import Keyring
from installer.media import target
from installer.media.contents import Contents
from installer.media.lockfile import PYTHONS
from installer.media.opening import Media, open_media
from installer.media.sign import MEDIA_LIFETIME, MediaSigner
from installer.media.text import fingerprint_sheet
from installer.media.wheelhouse import Locks
from installer.packager_disk import refusals_of_the_disk
from installer.progress import Progress


@dataclass(frozen=True, slots=True)
class BuiltMedia:
    """What `build_media` wrote."""

    path: Path
    version: str
    pyz_sha256: str
    fingerprint_sheet: Path
    size: int
    expires: datetime
    targets: tuple[str, ...]
    """Kinds of nodes, besides those with a processor alone, that the media have programs for."""
    tensorrt: bool
    """Whether TensorRT's libraries were given."""


@refusals_of_the_disk()
def build_media(
    out: Path,
    bundles: Sequence[Path],
    trust_directory: Path,
    passphrase: bytes,
    *,
    wheel_cache: Path,
    progress: Progress,
    now: datetime | None = None,
    pythons: Sequence[str] = PYTHONS,
    targets: Sequence[str] = (),
    locks: Locks | None = None,
) -> BuiltMedia:
    """Write media with `bundles` to the new directory `out`, signed by `trust_directory`'s keys.

    `targets` are kinds of nodes, such as "cuda13", that the media carry further programs for;
    `locks` say what every program is, those of the checkout if None.

    Raises UsageError for a target that is not known; ConflictError if `out` exists or two bundles
    share name and version; VerificationError if a bundle does not verify; NotFoundError,
    SignatureError, MetadataError about the keys; UnavailableError if wheels cannot be fetched;
    UnsupportedError for a file that a stick cannot hold; CapacityError, StorageError about the
    disk.
    """
    check_targets(targets)
    now = now or datetime.now(UTC)
    out = out.absolute()
    keyring = Keyring(trust_directory)
    with exclusive_lock(keyring.directory / ".lock"):
        # Under the lock: another build to the same place would lose its files.
        partial = _begin(out)
        try:
            signer = MediaSigner(keyring, passphrase, now)
            contents = Contents(
                partial,
                keyring,
                progress,
                now=now,
                pythons=pythons,
                locks=locks or Locks.of_checkout(),
                targets=targets,
            )
            signed = contents.write(bundles, wheel_cache)
            _write_signed(partial, signed, signer.sign(signed))
            media = _open_as_a_node(partial, keyring, now)
            sheet = _write_fingerprint_sheet(out, media, contents.pyz_sha256)
            os.sync()
            partial.rename(out)
            fsync_dir(out.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return BuiltMedia(
        path=out,
        version=media.release.version,
        pyz_sha256=contents.pyz_sha256,
        fingerprint_sheet=sheet,
        size=media.size,
        expires=now + MEDIA_LIFETIME,
        targets=() if media.cuda13 is None else (media.cuda13.name,),
        tensorrt=media.cuda13 is not None and media.cuda13.has_tensorrt,
    )


def check_targets(names: Sequence[str]) -> None:
    """Refuse what is no kind of node. Raises UsageError."""
    for name in names:
        if name not in target.NAMES:
            raise UsageError(
                f"there is no target {name!r}", hint=f"targets are {', '.join(target.NAMES)}"
            )


def _begin(out: Path) -> Path:
    if out.exists():
        raise ConflictError(
            f"{out} exists; media are never written over", hint="name a new directory"
        )
    partial = out.with_name(f".{out.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except OSError as error:
        raise StorageError(
            f"{partial} cannot be written: {error.strerror}",
            hint="name a place with --out where this user may write",
        ) from error
    return partial


def _write_signed(
    partial: Path, targets: Mapping[str, bytes], metadata: Mapping[str, bytes]
) -> None:
    files = {f"targets/{path}": data for path, data in targets.items()}
    files |= {f"metadata/{name}": data for name, data in metadata.items()}
    for name, data in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(data)


def _open_as_a_node(partial: Path, keyring: Keyring, now: datetime) -> Media:
    with TemporaryDirectory() as scratch:
        anchor = keyring.roots()[0].read_bytes()
        return open_media(partial, TrustStore(Path(scratch)), anchor, now)


def _write_fingerprint_sheet(out: Path, media: Media, sha256: str) -> Path:
    sheet = out.with_name(f"{out.name}.fingerprint.txt")
    text = fingerprint_sheet(out.name, media, sha256)
    # As the directory is named, which may be in any script.
    sheet.write_text(text, encoding="utf-8")
    return sheet
