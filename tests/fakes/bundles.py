"""Small signed bundles and keys, real in everything but their weights."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from appliance.bundle import manifest as manifests
from appliance.bundle.files import MANIFEST_NAME, SIGNATURE_NAME
from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import EncoderSpec, FileEntry, Graph
from appliance.fsops import hash_regular
from installer.signing import BundleSigner

PASSPHRASE = b"correct horse"


def write_signer(directory: Path, name: str = "model-signer") -> BundleSigner:
    """A new model signer whose encrypted key is `directory`/NAME.pem."""
    pem = generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE)
    )
    path = directory / f"{name}.pem"
    path.write_bytes(pem)
    return BundleSigner(path, PASSPHRASE, name=name)


def write_bundle(
    directory: Path, *, name: str = "tiny", version: str = "1.0", weights: bytes = b"w" * 4096
) -> Manifest:
    """An unsigned embedding bundle with the usual files; its graph does not run."""
    contents = {
        "graph/cpu/model.onnx": b"\x08\x0a graph",
        "graph/cpu/weights-00001.bin": weights,
        "tokenizer/tokenizer.json": b'{"model":{}}',
        "LICENSE": b"Apache-2.0\n",
        "mlbom.cdx.json": b'{"bomFormat":"CycloneDX"}',
    }
    for path, data in contents.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return write_manifest(directory, name=name, version=version)


def write_manifest(directory: Path, *, name: str = "tiny", version: str = "1.0") -> Manifest:
    """Describe the files that are in `directory` by a new bundle.json."""
    files = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        relative = path.relative_to(directory).as_posix()
        if relative not in {MANIFEST_NAME, SIGNATURE_NAME}:
            size, sha256 = hash_regular(path, name=relative)
            files.append(FileEntry(path=relative, size=size, sha256=sha256))
    manifest = Manifest(
        format="appliance-bundle/1",
        name=name,
        version=version,
        kind="embedding",
        family="bert",
        created=1_700_000_000,
        license="Apache-2.0",
        checkpoint_sha256="0" * 64,
        files=tuple(sorted(files, key=lambda entry: entry.path)),
        graphs=(Graph(variant="cpu", path="graph/cpu/model.onnx", precision="fp32"),),
        tokenizer="tokenizer/tokenizer.json",
        encoder=EncoderSpec(dimensions=8, max_length=16, pooling="mean", normalize=True),
    )
    (directory / MANIFEST_NAME).write_bytes(manifests.encode(manifest))
    return manifest
