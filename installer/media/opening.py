"""Media as the node sees them: opened by verifying, read by hashing.

Owns the exact list of a medium's files. Nothing on it goes unverified: each file is TUF metadata,
a TUF target, pinned by one (`release.json`), or covered by a bundle's signature; anything else is
refused. Refuses to promise anything about bytes that are read later: a wheel or a document is
hashed while it is copied (`Media.copy`), weights while the model store imports them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.specs import FileEntry
from appliance.bundle.verify import VerifiedBundle, verify_contents, verify_metadata
from appliance.errors import DigestError, LayoutError, NotFoundError
from appliance.fsops import hash_regular, resolve_inside, walk_files
from appliance.model_store.blobs import copy_verified
from appliance.trust.store import PinnedFile, Targets, TrustStore
from installer import pyz
from installer.media import target
from installer.media.release import (
    BOOTSTRAP,
    RELEASE,
    REQUIREMENTS,
    ModelDescriptor,
    Release,
    ReleaseFile,
    ReleaseWheel,
    decode_model,
    decode_release,
    describe,
)
from installer.media.target import CUDA13, TargetPrograms

Advance = Callable[[int], None]
DOCS = "docs/"
_METADATA = "metadata/"
_MODELS = "models/"
_FRESH_MEDIA = "get fresh media from the packager"


@dataclass(frozen=True, slots=True)
class Media:
    """Media whose metadata verified and whose file list is exactly the signed one.

    Contents of wheels, documents and weights are verified by who copies them, or `verify_media`.
    """

    path: Path
    targets: Targets
    release: Release
    bundles: tuple[VerifiedBundle, ...]
    cuda13: TargetPrograms | None = None
    """What GPU nodes install besides, if the packager put it on."""

    @property
    def wheels(self) -> tuple[ReleaseWheel, ...]:
        """The wheels of every interpreter."""
        return self.release.wheels

    @property
    def docs(self) -> tuple[ReleaseFile, ...]:
        """The documentation, below `docs/`."""
        return tuple(file for file in self.release.files if file.path.startswith(DOCS))

    @property
    def pip_wheel(self) -> ReleaseWheel:
        """The wheel of pip itself, which the node runs as it is."""
        (wheel,) = [w for w in self.wheels if w.path.startswith("wheels/pip-")]
        return wheel

    @property
    def pinned(self) -> tuple[PinnedFile | ReleaseFile, ...]:
        """Every file outside of bundles: metadata, targets, and what the release lists."""
        return (
            *self.targets.metadata,
            *self.targets.files.values(),
            *self.release.files,
            *self.release.wheels,
        )

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.pinned) + sum(bundle.size for bundle in self.bundles)

    def wheels_for(self, python: str) -> tuple[ReleaseWheel, ...]:
        """The wheels that CPython `python` ("3.11") installs. Raises NotFoundError."""
        wheels = tuple(wheel for wheel in self.wheels if python in wheel.pythons)
        if not wheels:
            raise NotFoundError(
                f"the media have no wheels for CPython {python}",
                hint=f"use CPython {', '.join(self.release.pythons)}",
            )
        return wheels

    def requirements(self) -> bytes:
        """The hash lock that pip installs from, the appliance itself included; verified."""
        return self.targets.read(REQUIREMENTS)

    def gpu_requirements(self) -> bytes:
        """The hash lock of a GPU node's second environment; verified. Raises NotFoundError."""
        return self.targets.read(target.lock_of(CUDA13))

    def bootstrap(self) -> bytes:
        """The hash lock of pip itself; verified."""
        return self.targets.read(BOOTSTRAP)

    def copy(
        self, file: ReleaseFile, destination: Path, advance: Advance = lambda _count: None
    ) -> None:
        """Make `destination` the durable copy of `file`, read once and hashed on the way.

        Raises DigestError, LayoutError, CapacityError, StorageError; there is then no
        `destination`.
        """
        entry = FileEntry(path=file.path, size=file.size, sha256=file.sha256)
        copy_verified(self.path, entry, destination, name=file.path, advance=advance)


def require_media(path: Path) -> None:
    """Refuse what is not media at all. Raises NotFoundError, which names those one level below."""
    if (path / "metadata").is_dir():
        return
    if (path / pyz.NAME).is_file():
        raise NotFoundError(
            f"the media at {path} are incomplete: they have no metadata",
            hint="the copy did not finish, perhaps for lack of room: copy all of them again",
        )
    hint = f"name the directory that holds {pyz.NAME} and metadata"
    if path.is_block_device():
        hint = f"this is a device: `mount -o ro {path} /media/usb`, then name /media/usb"
    raise NotFoundError(f"there are no media at {path}", hint=hint + named(media_below(path)))


def media_below(path: Path) -> list[Path]:
    """The media one level below `path`, if it is a directory."""
    return [found.parent for found in sorted(path.glob("*/metadata"))] if path.is_dir() else []


def named(found: Sequence[Path]) -> str:
    """The end of a hint that names what was `found` nearby."""
    return f": {' or '.join(map(str, found))}" if found else ""


def require_bundle(directory: Path) -> None:
    """Refuse a directory that is no bundle, damaged or not. Raises NotFoundError."""
    if not (directory / MANIFEST_NAME).is_file():
        raise NotFoundError(
            f"{directory} is not a bundle", hint=f"name the directory that holds {MANIFEST_NAME}"
        )


def open_media(
    path: Path,
    trust_store: TrustStore,
    embedded_root: bytes | None,
    now: datetime,
    *,
    allow_expired: bool = False,
) -> Media:
    """Verify the metadata of the media at `path`, their file list, and each bundle's signature.

    Quick: reads no wheel and no weights. For the arguments see `TrustStore.update`. Raises
    NotFoundError if there are no media, MetadataError, SignatureError, LayoutError, DigestError.
    """
    require_media(path)
    targets = trust_store.update(path, embedded_root, now, allow_expired=allow_expired)
    release = decode_release(targets.read(RELEASE))
    for name in (REQUIREMENTS, BOOTSTRAP):
        targets.read(name)
    descriptors = [
        decode_model(targets.read(name), name)
        for name in sorted(targets.files)
        if name.startswith(_MODELS)
    ]
    signers = trust_store.signers()
    bundles = tuple(
        _checked_against(
            descriptor,
            verify_metadata(
                path / descriptor.directory, signers, prefix=f"{descriptor.directory}/"
            ),
        )
        for descriptor in descriptors
    )
    media = Media(path, targets, release, bundles, _cuda13(targets, release))
    _check_files(media)
    _check_hashes(media, (file for file in release.files if file.path.startswith(_METADATA)))
    return media


def verify_media(media: Media, advance: Advance | None = None, *, uncached: bool = True) -> None:
    """Hash every byte of `media`. Raises DigestError or LayoutError naming the file.

    `uncached` re-reads from the medium itself, whatever the kernel remembers of having written.
    """
    _check_hashes(media, media.pinned, advance, uncached=uncached)
    for bundle in media.bundles:
        verify_contents(bundle, advance, uncached=uncached)


def _cuda13(targets: Targets, release: Release) -> TargetPrograms | None:
    """The programs for GPU nodes, with their lock verified, or None."""
    if target.document_of(CUDA13) not in targets.files:
        return None
    targets.read(target.lock_of(CUDA13))
    return target.decode(targets.read(target.document_of(CUDA13)), CUDA13, release.files)


def _checked_against(descriptor: ModelDescriptor, bundle: VerifiedBundle) -> VerifiedBundle:
    """The bundle that the release names, not merely one that some accepted key signed."""
    found = describe(bundle)
    if found != descriptor:
        name = "model.sig" if found.digest == descriptor.digest else "bundle.json"
        raise _altered(f"{descriptor.directory}/{name}")
    return bundle


def _check_files(media: Media) -> None:
    """The files are exactly the pinned ones, with the pinned sizes."""
    listed = {file.path: file.size for file in media.pinned}
    for bundle in media.bundles:
        listed |= {bundle.prefix + entry.path: entry.size for entry in bundle.files}
    found = walk_files(media.path)
    for name in sorted(listed.keys() | found.keys()):
        if name not in listed:
            raise LayoutError(
                f"{name} is on the media but was not signed",
                path=name,
                hint="remove it, or get fresh media from the packager",
            )
        if name not in found:
            raise LayoutError(f"{name} is missing from the media", path=name, hint=_FRESH_MEDIA)
        if listed[name] != found[name]:
            raise _altered(name)


def _check_hashes(
    media: Media,
    files: Iterable[PinnedFile | ReleaseFile],
    advance: Advance | None = None,
    *,
    uncached: bool = False,
) -> None:
    for file in files:
        path = resolve_inside(media.path, file.path)
        size, sha256 = hash_regular(path, name=file.path, advance=advance, uncached=uncached)
        if (size, sha256) != (file.size, file.sha256):
            raise _altered(file.path)


def _altered(name: str) -> DigestError:
    return DigestError(f"{name} is not as it was signed", path=name, hint=_FRESH_MEDIA)
