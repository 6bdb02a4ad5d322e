"""A bundle is used as it was signed, or not at all."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.bundle import manifest as manifests
from appliance.bundle.verify import (
    STATEMENT_TYPE,
    VerifiedBundle,
    verify_contents,
    verify_metadata,
)
from appliance.errors import LayoutError, SignatureError, VerificationError
from appliance.trust import dsse
from appliance.trust.model_signer import ModelSigner
from installer.signing import BundleSigner
from tests.fakes.bundles import write_bundle, write_manifest, write_signer

WEIGHTS = "graph/cpu/weights-00001.bin"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> BundleSigner:
    return write_signer(tmp_path_factory.mktemp("signer"))


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, signer: BundleSigner) -> Path:
    directory = tmp_path_factory.mktemp("signed") / "tiny"
    write_bundle(directory)
    signer.sign(directory)
    return directory


@pytest.fixture
def bundle(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "tiny"))


def verify(bundle: Path, signer: BundleSigner) -> VerifiedBundle:
    verified = verify_metadata(bundle, [signer.signer], prefix="bundles/tiny-1.0/")
    verify_contents(verified)
    return verified


def refuses(bundle: Path, signer: BundleSigner, name: str) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        verify(bundle, signer)
    assert caught.value.path == f"bundles/tiny-1.0/{name}"
    assert caught.value.hint
    return caught.value


def test_a_signed_bundle_verifies(bundle: Path, signer: BundleSigner) -> None:
    verified = verify(bundle, signer)
    assert verified.manifest.name == "tiny"
    assert verified.digest == manifests.digest((bundle / "bundle.json").read_bytes())
    assert [entry.path for entry in verified.files] == sorted(
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()
    )
    assert verified.size == sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file())


def test_hashing_reports_every_byte(bundle: Path, signer: BundleSigner) -> None:
    seen: list[int] = []
    verified = verify(bundle, signer)
    verify_contents(verified, seen.append, uncached=True)
    assert sum(seen) == verified.size


def test_the_public_tool_accepts_what_we_sign(
    bundle: Path, signer: BundleSigner, tmp_path: Path
) -> None:
    (tmp_path / "signer.pub").write_text(signer.signer.public_key)
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(bundle)]
    command += ["--signature", str(bundle / "model.sig")]
    command += ["--public_key", str(tmp_path / "signer.pub")]
    good = subprocess.run(command, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    (bundle / WEIGHTS).write_bytes(b"v" * 4096)
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


# Bytes


def test_no_byte_of_any_file_can_change(bundle: Path, signer: BundleSigner) -> None:
    chance = random.Random(20261123)
    for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
        name, good = path.relative_to(bundle).as_posix(), path.read_bytes()
        for position in chance.sample(range(len(good)), min(len(good), 60)):
            bad = bytearray(good)
            bad[position] ^= chance.choice([0x01, 0x02, 0x20, 0x80])
            path.write_bytes(bytes(bad))
            refuses(bundle, signer, name)
        path.write_bytes(good)
    verify(bundle, signer)


def test_every_byte_of_the_signature_file_counts(bundle: Path, signer: BundleSigner) -> None:
    good = (bundle / "model.sig").read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x01 if position % 2 else 0x20
        (bundle / "model.sig").write_bytes(bytes(bad))
        with pytest.raises(SignatureError) as caught:
            verify_metadata(bundle, [signer.signer])
        assert caught.value.path == "model.sig"


def test_metadata_verification_reads_no_weights(bundle: Path, signer: BundleSigner) -> None:
    (bundle / WEIGHTS).write_bytes(b"v" * 4096)
    verified = verify_metadata(bundle, [signer.signer])
    with pytest.raises(VerificationError, match=WEIGHTS):
        verify_contents(verified)


# Files


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "extra file": ("notes.txt", lambda b: (b / "notes.txt").write_text("x")),
    "extra file in a directory": ("graph/x.so", lambda b: (b / "graph/x.so").write_text("x")),
    "extra hidden file": (".gitignore", lambda b: (b / ".gitignore").write_text("x")),
    "hidden directory": (".git/config", lambda b: _write(b / ".git/config")),
    "missing file": ("LICENSE", lambda b: (b / "LICENSE").unlink()),
    "renamed file": ("LICENCE", lambda b: (b / "LICENSE").rename(b / "LICENCE")),
    "other case": ("LICENSE", lambda b: (b / "LICENSE").rename(b / "license")),
    "longer file": (WEIGHTS, lambda b: append(b / WEIGHTS)),
    "shorter file": (WEIGHTS, lambda b: os.truncate(b / WEIGHTS, 100)),
    "empty file": (WEIGHTS, lambda b: os.truncate(b / WEIGHTS, 0)),
    "link to itself elsewhere": (WEIGHTS, lambda b: _replace_by_link(b / WEIGHTS)),
    "link as manifest": ("bundle.json", lambda b: _replace_by_link(b / "bundle.json")),
    "link as signature": ("model.sig", lambda b: _replace_by_link(b / "model.sig")),
    "directory link": ("graph", lambda b: _replace_by_link(b / "graph")),
    "pipe": (WEIGHTS, lambda b: _replace_by_pipe(b / WEIGHTS)),
    "directory as file": ("LICENSE", lambda b: _replace_by_directory(b / "LICENSE")),
    "stripped signature": ("model.sig", lambda b: (b / "model.sig").unlink()),
    "no manifest": ("bundle.json", lambda b: (b / "bundle.json").unlink()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_directory_is_refused(bundle: Path, signer: BundleSigner, change: str) -> None:
    name, apply = CHANGES[change]
    apply(bundle)
    refuses(bundle, signer, name)


def test_files_cannot_change_places(bundle: Path, signer: BundleSigner) -> None:
    (bundle / "LICENSE").rename(bundle / "swap")
    (bundle / "mlbom.cdx.json").rename(bundle / "LICENSE")
    (bundle / "swap").rename(bundle / "mlbom.cdx.json")
    refuses(bundle, signer, "LICENSE")


def test_a_huge_signature_or_manifest_is_not_read(bundle: Path, signer: BundleSigner) -> None:
    for name in ("bundle.json", "model.sig"):
        kept = (bundle / name).read_bytes()
        with (bundle / name).open("r+b") as file:
            file.truncate(1 << 40)
        refuses(bundle, signer, name)
        (bundle / name).write_bytes(kept)


def test_a_file_that_became_a_link_after_verification_is_not_read(
    bundle: Path, signer: BundleSigner
) -> None:
    verified = verify_metadata(bundle, [signer.signer])
    _replace_by_link(bundle / WEIGHTS)
    with pytest.raises(LayoutError):
        verify_contents(verified)


# Signatures


def test_an_unknown_signer_is_refused_by_name(
    bundle: Path, signer: BundleSigner, tmp_path: Path
) -> None:
    other = write_signer(tmp_path, "other")
    assert refuses(bundle, other, "model.sig").code == "signer_unknown"
    with pytest.raises(SignatureError):
        verify_metadata(bundle, [])


def test_a_forged_bundle_with_the_right_hint_is_refused(
    bundle: Path, signer: BundleSigner, tmp_path: Path
) -> None:
    forger = write_signer(tmp_path, "forger")
    (bundle / WEIGHTS).write_bytes(b"evil" * 1024)
    write_manifest(bundle)
    forger.sign(bundle)
    document = json.loads((bundle / "model.sig").read_bytes())
    document["verificationMaterial"]["publicKey"]["hint"] = signer.signer.hint
    (bundle / "model.sig").write_bytes(json.dumps(document, separators=(",", ":")).encode())
    refuses(bundle, signer, "model.sig")


def test_another_bundles_signature_is_refused(
    bundle: Path, signer: BundleSigner, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "other", weights=b"o" * 4096)
    signer.sign(tmp_path / "other")
    shutil.copy(tmp_path / "other/model.sig", bundle / "model.sig")
    refuses(bundle, signer, "bundle.json")


def test_a_manifest_that_leaves_out_a_signed_file_is_refused(
    bundle: Path, signer: BundleSigner
) -> None:
    (bundle / "run.so").write_bytes(b"code")
    signer_covers_it = _sign_without_check(signer, bundle)
    assert "run.so" in signer_covers_it
    assert isinstance(refuses(bundle, signer, "run.so"), SignatureError)


def test_a_second_signature_is_refused(bundle: Path, signer: BundleSigner) -> None:
    document = json.loads((bundle / "model.sig").read_bytes())
    document["dsseEnvelope"]["signatures"] *= 2
    (bundle / "model.sig").write_bytes(json.dumps(document, separators=(",", ":")).encode())
    refuses(bundle, signer, "model.sig")


@pytest.mark.parametrize(
    "serialization",
    [
        {"method": "shards"},
        {"ignore_paths": ["model.sig", "graph"]},
        {"ignore_paths": []},
        {"allow_symlinks": True},
        {"hash_type": "blake2b"},
    ],
)
def test_a_signature_over_less_than_the_files_is_refused(
    bundle: Path, serialization: dict[str, object]
) -> None:
    def change(predicate: dict[str, Any]) -> None:
        predicate["serialization"] |= serialization

    signer = _sign_changed(bundle, change)
    with pytest.raises(SignatureError) as caught:
        verify_metadata(bundle, [signer])
    assert caught.value.path == "model.sig"


def test_a_signature_that_names_a_file_twice_is_refused(bundle: Path) -> None:
    def change(predicate: dict[str, Any]) -> None:
        predicate["resources"].append(predicate["resources"][0])

    signer = _sign_changed(bundle, change)
    with pytest.raises(SignatureError, match="twice"):
        verify_metadata(bundle, [signer])


def test_a_path_that_leaves_the_bundle_is_refused(signer: BundleSigner, bundle: Path) -> None:
    document = json.loads((bundle / "bundle.json").read_bytes())
    document["files"][0]["path"] = "../LICENSE"
    (bundle / "bundle.json").write_bytes(
        json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    )
    _sign_without_check(signer, bundle)
    with pytest.raises(LayoutError):
        verify(bundle, signer)


# Signing


@pytest.mark.parametrize("name", [".hidden", "graph/.git"])
def test_hidden_files_are_not_signed(signer: BundleSigner, tmp_path: Path, name: str) -> None:
    write_bundle(tmp_path)
    _write(tmp_path / name)
    with pytest.raises(LayoutError, match="hidden"):
        signer.sign(tmp_path)


def test_empty_files_are_not_signed(signer: BundleSigner, tmp_path: Path) -> None:
    write_bundle(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(LayoutError, match="empty"):
        signer.sign(tmp_path)


def test_a_wrong_passphrase_is_a_typed_error(tmp_path: Path) -> None:
    write_signer(tmp_path)
    with pytest.raises(SignatureError, match="passphrase"):
        BundleSigner(tmp_path / "model-signer.pem", b"wrong")


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


def _replace_by_link(path: Path) -> None:
    elsewhere = path.parent.parent.parent / f"elsewhere-{path.name}"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def _replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _sign_without_check(signer: BundleSigner, directory: Path) -> str:
    """Sign whatever is there, as a careless curator would; returns the signed statement."""
    with pytest.raises(VerificationError):
        signer.sign(directory)
    document = json.loads((directory / "model.sig").read_bytes())
    return base64.b64decode(document["dsseEnvelope"]["payload"]).decode()


def _sign_changed(directory: Path, change: Callable[[dict[str, Any]], None]) -> ModelSigner:
    """Put a valid signature by a new key over the statement as `change` leaves it."""
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signer = ModelSigner("careless", pem.decode("ascii"))
    document = json.loads((directory / "model.sig").read_bytes())
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    change(statement["predicate"])
    payload = json.dumps(statement).encode()
    signature = private.sign(dsse.preimage(payload, STATEMENT_TYPE), ec.ECDSA(SHA256()))
    document["verificationMaterial"]["publicKey"]["hint"] = signer.hint
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    (directory / "model.sig").write_bytes(json.dumps(document, separators=(",", ":")).encode())
    return signer
