"""What a release says about itself on the media: small signed JSON documents.

Owns `appliance/release.json` (every file of the media that no other document pins) and
`models/NAME-VERSION.json` (one per bundle). Refuses unknown fields and any other spelling of the
same document. Both are TUF targets, so their bytes are verified before they are read here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeVar

import msgspec

from appliance.bundle.files import SIGNATURE_NAME
from appliance.bundle.verify import VerifiedBundle
from appliance.errors import LayoutError, UnsupportedError
from appliance.fsops import check_relative

RELEASE = "appliance/release.json"
REQUIREMENTS = "appliance/requirements.txt"
BOOTSTRAP = "appliance/bootstrap.txt"


MAX_FILE_BYTES = 4 * 1024**3 - 1
"""Of FAT32, which most sticks come with: no file of any media is larger."""


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ReleaseFile(_Strict, frozen=True, kw_only=True):
    """A file of the media; `path` is relative to them."""

    path: str
    size: int
    sha256: str


class ReleaseWheel(ReleaseFile, frozen=True, kw_only=True):
    """A wheel; `pythons` are the CPython versions that install it, such as "3.11"."""

    pythons: tuple[str, ...]


class Release(_Strict, frozen=True, kw_only=True):
    """`appliance/release.json`."""

    format: Literal["appliance-release/1"] = "appliance-release/1"
    version: str
    created: int
    """Unix seconds."""
    pythons: tuple[str, ...]
    files: tuple[ReleaseFile, ...]
    """appliance.pyz, README.txt, docs/, and every root metadata file."""
    wheels: tuple[ReleaseWheel, ...]

    @property
    def pinned(self) -> tuple[ReleaseFile, ...]:
        """Files and wheels."""
        return (*self.files, *self.wheels)


class ModelDescriptor(_Strict, frozen=True, kw_only=True):
    """`models/NAME-VERSION.json`; `digest` is SHA-256 of bundle.json, and pins the rest."""

    format: Literal["appliance-model/1"] = "appliance-model/1"
    name: str
    version: str
    kind: str
    size: int
    digest: str
    signature_sha256: str

    @property
    def directory(self) -> str:
        """Where the bundle is, relative to the media."""
        return f"bundles/{self.name}-{self.version}"

    @property
    def target(self) -> str:
        """The TUF target that holds this document."""
        return f"models/{self.name}-{self.version}.json"


def describe(bundle: VerifiedBundle) -> ModelDescriptor:
    """The descriptor of a bundle as it was verified."""
    manifest = bundle.manifest
    return ModelDescriptor(
        name=manifest.name,
        version=manifest.version,
        kind=manifest.kind,
        size=bundle.size,
        digest=bundle.digest,
        signature_sha256=next(f.sha256 for f in bundle.files if f.path == SIGNATURE_NAME),
    )


def check_file_size(name: str, size: int) -> None:
    """Refuse, by name, what a stick with FAT32 cannot hold. Raises UnsupportedError."""
    if size > MAX_FILE_BYTES:
        raise UnsupportedError(
            f"{name} has {size / 1024**3:.1f} GiB, and a file on media less than 4 GiB",
            hint="leave it out: a FAT32 stick could not hold it",
        )


T = TypeVar("T", Release, ModelDescriptor)


def encode(document: Release | ModelDescriptor) -> bytes:
    """Canonical bytes of `document`."""
    return msgspec.json.encode(document, order="sorted")


def decode_release(data: bytes) -> Release:
    """Parse a verified release document. Raises LayoutError."""
    release = _decode(data, Release, RELEASE)
    _check_paths((file.path for file in release.pinned), RELEASE)
    return release


def decode_model(data: bytes, target: str) -> ModelDescriptor:
    """Parse the verified descriptor `target`. Raises LayoutError."""
    descriptor = _decode(data, ModelDescriptor, target)
    _check_paths([descriptor.directory], target)
    if descriptor.target != target:
        raise _bad(target, f"it describes {descriptor.name} {descriptor.version}")
    return descriptor


def _decode(data: bytes, kind: type[T], target: str) -> T:
    try:
        document = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad(target, str(error)) from None
    if encode(document) != data:
        raise _bad(target, "it is not in canonical form")
    return document


def _check_paths(paths: Iterable[str], target: str) -> None:
    seen: set[str] = set()
    for path in paths:
        check_relative(path)
        if path.lower() in seen:
            raise _bad(target, f"it lists {path} twice")
        seen.add(path.lower())


def _bad(target: str, reason: str) -> LayoutError:
    return LayoutError(
        f"targets/{target} is not valid: {reason}",
        path=f"targets/{target}",
        hint="get fresh media from the packager",
    )
