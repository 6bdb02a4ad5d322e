"""Verification of a model bundle, in one forced order.

Owns the chain signer -> OMS signature -> manifest -> files. Refuses bundles with any file that
the signature does not cover, and anything else that is not exactly as signed. `verify_metadata`
is quick (it reads no weights); `verify_contents` hashes every byte. Who copies a bundle hashes
while copying instead: a stick can answer differently the second time.

The signature is the public format of OpenSSF Model Signing 1.0 in key mode (an in-toto statement
in a DSSE envelope in a Sigstore bundle), so `model_signing verify key` checks bundles too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from appliance.bundle import manifest as manifests
from appliance.bundle.files import MANIFEST_NAME, MAX_MANIFEST_BYTES, SIGNATURE_NAME
from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import FileEntry
from appliance.errors import DigestError, LayoutError, SignatureError
from appliance.fsops import hash_regular, read_regular, resolve_inside, walk_files
from appliance.trust import dsse
from appliance.trust.model_signer import ModelSigner

STATEMENT_TYPE = "application/vnd.in-toto+json"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_FRESH_COPY = "get a fresh copy of the bundle"


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """A bundle whose manifest is signed by an accepted key.

    Attributes:
        directory: where the files are; their contents are still to be hashed when used.
        manifest: the signed manifest.
        digest: the bundle's identity, hex.
        files: every file, `bundle.json` and `model.sig` included, sorted by path.
        signer: whose key signed it.
        prefix: what errors put before a file's name, such as "bundles/guide-1.0/".
    """

    directory: Path
    manifest: Manifest
    digest: str
    files: tuple[FileEntry, ...]
    signer: ModelSigner
    prefix: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


def verify_metadata(
    directory: Path, signers: Sequence[ModelSigner], *, prefix: str = ""
) -> VerifiedBundle:
    """Check signature, manifest, file list and sizes of the bundle in `directory`.

    Raises SignatureError, LayoutError or DigestError; each names the file, after `prefix`.
    """
    signature = _read(directory, SIGNATURE_NAME, dsse.MAX_ENVELOPE_BYTES, prefix)
    signer, resources = _signed_resources(signature, signers, prefix + SIGNATURE_NAME)
    document = _read(directory, MANIFEST_NAME, MAX_MANIFEST_BYTES, prefix)
    digest = manifests.digest(document)
    if resources.get(MANIFEST_NAME) != digest:
        raise _altered(prefix + MANIFEST_NAME)
    manifest = manifests.decode(document)
    _compare_with_signature(manifest, resources, prefix)
    files = (
        *manifest.files,
        FileEntry(path=MANIFEST_NAME, size=len(document), sha256=digest),
        FileEntry(
            path=SIGNATURE_NAME, size=len(signature), sha256=hashlib.sha256(signature).hexdigest()
        ),
    )
    files = tuple(sorted(files, key=lambda entry: entry.path))
    _compare_with_directory(files, directory, prefix)
    return VerifiedBundle(directory, manifest, digest, files, signer, prefix)


def verify_contents(
    bundle: VerifiedBundle, advance: Callable[[int], None] | None = None, *, uncached: bool = False
) -> None:
    """Hash every file of `bundle`. Raises DigestError naming the first that differs.

    `advance` is told the bytes as they are read. `uncached`: see `fsops.hash_regular`.
    """
    for entry in bundle.files:
        name = bundle.prefix + entry.path
        path = resolve_inside(bundle.directory, entry.path)
        size, sha256 = hash_regular(path, name=name, advance=advance, uncached=uncached)
        if (size, sha256) != (entry.size, entry.sha256):
            raise _altered(name)


# OpenSSF Model Signing: the parts of the file, https://github.com/ossf/model-signing-spec


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class _KeyHint(_Strict, frozen=True):
    hint: str


class _Material(_Strict, frozen=True):
    public_key: _KeyHint
    tlog_entries: tuple[()]


class _SigstoreBundle(_Strict, frozen=True):
    media_type: str
    verification_material: _Material
    dsse_envelope: dsse.Envelope


class _Digest(_Strict, frozen=True):
    sha256: str


class _Subject(_Strict, frozen=True):
    name: str
    digest: _Digest


class _Serialization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: Literal[False]
    ignore_paths: tuple[str, ...]


class _Resource(_Strict, frozen=True):
    name: str
    algorithm: Literal["sha256"]
    digest: str


class _Predicate(_Strict, frozen=True):
    serialization: _Serialization
    resources: tuple[_Resource, ...]


class _Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: tuple[_Subject]
    predicate_type: Literal["https://model_signing/signature/v1.0"] = msgspec.field(
        name="predicateType"
    )
    predicate: _Predicate


def _signed_resources(
    data: bytes, signers: Sequence[ModelSigner], path: str
) -> tuple[ModelSigner, dict[str, str]]:
    """Signer and path -> SHA-256 of what it signed."""
    try:
        bundle = msgspec.json.decode(data, type=_SigstoreBundle)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise dsse.refused(str(error), path) from None
    if bundle.media_type != _MEDIA_TYPE or msgspec.json.encode(bundle) != data:
        raise dsse.refused("it is not in canonical form", path)
    payload, signature, keyid = dsse.opened(bundle.dsse_envelope, STATEMENT_TYPE, path=path)
    if keyid:
        raise dsse.refused("it names a key id", path)
    signer = _signer(bundle.verification_material.public_key.hint, signers, path)
    if not signer.verifies(signature, dsse.preimage(payload, STATEMENT_TYPE)):
        raise dsse.refused("it does not match the signer's key", path)
    return signer, _resources(payload, path)


def _signer(hint: str, signers: Sequence[ModelSigner], path: str) -> ModelSigner:
    for signer in signers:
        if signer.hint == hint:
            return signer
    raise SignatureError(
        f"{path} was made with a key that is not accepted here",
        path=path,
        code="signer_unknown",
        hint="ask the packager for a bundle signed with a current model signer's key",
    )


def _resources(payload: bytes, path: str) -> dict[str, str]:
    try:
        statement = msgspec.json.decode(payload, type=_Statement)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise dsse.refused(str(error), path) from None
    predicate = statement.predicate
    if predicate.serialization.ignore_paths != (SIGNATURE_NAME,):
        raise dsse.refused("it leaves out files other than itself", path)
    resources = {resource.name: resource.digest for resource in predicate.resources}
    if len(resources) != len(predicate.resources):
        raise dsse.refused("it names a file twice", path)
    return resources


def _compare_with_signature(manifest: Manifest, resources: dict[str, str], prefix: str) -> None:
    listed = {entry.path: entry.sha256 for entry in manifest.files}
    listed[MANIFEST_NAME] = resources[MANIFEST_NAME]
    for name in sorted(listed.keys() | resources.keys()):
        if listed.get(name) != resources.get(name):
            raise SignatureError(
                f"the signature and the manifest disagree about {prefix}{name}",
                path=prefix + name,
                hint=_FRESH_COPY,
            )


def _compare_with_directory(files: Sequence[FileEntry], directory: Path, prefix: str) -> None:
    listed = {entry.path: entry.size for entry in files}
    found = walk_files(directory, prefix=prefix)
    for name in sorted(listed.keys() | found.keys()):
        if any(part.startswith(".") for part in name.split("/")):
            raise _layout(prefix + name, "is hidden, and tools skip hidden files")
        if name not in listed:
            raise _layout(prefix + name, "is in the bundle but was not signed")
        if name not in found:
            raise _layout(prefix + name, "was signed but is missing from the bundle")
        if listed[name] != found[name]:
            raise _altered(prefix + name)


def _read(directory: Path, name: str, limit: int, prefix: str) -> bytes:
    return read_regular(directory / name, limit=limit, name=prefix + name)


def _altered(name: str) -> DigestError:
    return DigestError(f"{name} is not as it was signed", path=name, hint=_FRESH_COPY)


def _layout(name: str, problem: str) -> LayoutError:
    return LayoutError(f"{name} {problem}", path=name, hint=_FRESH_COPY)
