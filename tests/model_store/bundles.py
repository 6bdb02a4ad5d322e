"""Small bundles with true digests, for a store that never looks inside them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from appliance.bundle import manifest as manifests
from appliance.bundle.files import MANIFEST_NAME, SIGNATURE_NAME
from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import EncoderSpec, FileEntry, Graph
from appliance.bundle.verify import VerifiedBundle
from appliance.trust.model_signer import ModelSigner

SIGNER = ModelSigner(name="a curator", public_key="never used: verification is behind us")


def write_bundle(
    directory: Path, *, name: str, version: str, weights: bytes = b"weights", created: int = 1
) -> VerifiedBundle:
    """A bundle on disk and what its verification would return."""
    contents = {
        "graph/cpu/model.onnx": b"graph of " + name.encode(),
        "graph/cpu/weights-00001.bin": weights,
        "tokenizer/tokenizer.json": b"{}",
    }
    entries = tuple(_entry(path, data) for path, data in contents.items())
    manifest = Manifest(
        format="appliance-bundle/1",
        name=name,
        version=version,
        kind="embedding",
        family="bert",
        created=created,
        license="Apache-2.0",
        checkpoint_sha256="0" * 64,
        files=entries,
        graphs=(Graph(variant="cpu", path="graph/cpu/model.onnx", precision="fp32"),),
        tokenizer="tokenizer/tokenizer.json",
        encoder=EncoderSpec(dimensions=8, max_length=8, pooling="mean", normalize=True),
    )
    document = manifests.encode(manifest)
    contents |= {MANIFEST_NAME: document, SIGNATURE_NAME: b"signature"}
    for path, data in contents.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    files = tuple(_entry(path, data) for path, data in sorted(contents.items()))
    return VerifiedBundle(directory, manifest, manifests.digest(document), files, SIGNER)


def _entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
