"""Hostile bundles: altered after they were signed, or signed and still not what they say."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.bundle.verify import verify_contents, verify_metadata
from appliance.errors import ApplianceError, UnsupportedError, VerificationError
from appliance.model_store import ModelStore
from installer.signing import BundleSigner
from tests.fakes.bundles import write_bundle, write_manifest, write_signer
from tests.hostile.oracle import faults_of_text
from tests.hostile.stack import Stack

Change = Callable[[Path], object]
WEIGHTS = "graph/cpu/weights-00001.bin"
GRAPH = "graph/cpu/model.onnx"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A change to a good bundle; `signed`: the signer signs what has become of it."""

    name: str
    change: Change
    signed: bool = False


def faults_of(stack: Stack, case: Bundle, directory: Path, signer: BundleSigner) -> list[str]:
    """What is wrong with what the node's own import says of it."""
    store = ModelStore(stack.config.layout.models)
    before = [bundle.digest for bundle in store.bundles()]
    try:
        if case.signed:
            signer.sign(directory)
        verified = verify_metadata(directory, [signer.signer])
        verify_contents(verified)
        store.import_bundle(verified, advance=lambda _count: None)
        return ["it was imported"]
    except (VerificationError, UnsupportedError) as error:
        found = faults_of_text(f"{error.message} {error.hint}".encode())
        named = getattr(error, "path", "a name")
        found += [] if error.hint or named else [f"no hint and no file: {error.message}"]
    except ApplianceError as error:
        found = [f"{type(error).__name__}: {error.message}"]
    if [bundle.digest for bundle in store.bundles()] != before:
        found.append("the store has changed")
    return found


def prepared(base: Path, case: Bundle, signer: BundleSigner) -> Path:
    """A signed bundle below `base` with the case's change."""
    directory = base / "tiny"
    shutil.rmtree(directory, ignore_errors=True)
    write_bundle(directory, name="hostile")
    if not case.signed:
        signer.sign(directory)
    case.change(directory)
    return directory


def a_signer(base: Path) -> BundleSigner:
    return write_signer(base)


def _write(name: str, data: bytes) -> Change:
    return lambda directory: (directory / name).write_bytes(data)


def _flip(name: str, at: int = 0) -> Change:
    def change(directory: Path) -> None:
        data = bytearray((directory / name).read_bytes())
        data[at] ^= 1
        (directory / name).write_bytes(data)

    return change


def _replaced(name: str, make: Callable[[Path], object]) -> Change:
    def change(directory: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return change


def _resigned(**fields: object) -> Bundle:
    """A manifest with other fields, in canonical spelling, and a signature over it."""

    def change(directory: Path) -> None:
        path = directory / "bundle.json"
        document = json.loads(path.read_bytes()) | fields
        path.write_text(json.dumps(document, separators=(",", ":"), sort_keys=True))

    (name,) = fields
    return Bundle(f"signed: {name} = {str(fields[name])[:200]}", change, signed=True)


def _entry(path: str, size: int = 1) -> dict[str, object]:
    return {"path": path, "sha256": "0" * 64, "size": size}


def _leave_out(directory: Path) -> None:
    path = directory / "bundle.json"
    document = json.loads(path.read_bytes())
    document["files"] = [e for e in document["files"] if e["path"] != "LICENSE"]
    path.write_text(json.dumps(document, separators=(",", ":"), sort_keys=True))


def _linked_directory(directory: Path) -> None:
    elsewhere = directory.parent / "elsewhere"
    shutil.rmtree(elsewhere, ignore_errors=True)
    (directory / "tokenizer").rename(elsewhere)
    (directory / "tokenizer").symlink_to(elsewhere)


CASES = [
    *(
        Bundle(f"a bit of {name}", _flip(name))
        for name in (
            WEIGHTS,
            GRAPH,
            "bundle.json",
            "model.sig",
            "LICENSE",
            "tokenizer/tokenizer.json",
            "mlbom.cdx.json",
        )
    ),
    Bundle("the last byte of the weights", _flip(WEIGHTS, -1)),
    Bundle("no signature", lambda d: (d / "model.sig").unlink()),
    Bundle("no manifest", lambda d: (d / "bundle.json").unlink()),
    Bundle("no weights", lambda d: (d / WEIGHTS).unlink()),
    Bundle("no licence", lambda d: (d / "LICENSE").unlink()),
    Bundle("weights cut off", lambda d: os.truncate(d / WEIGHTS, 100)),
    Bundle("weights that go on", _write(WEIGHTS, b"w" * 4097)),
    Bundle("a file more", _write("setup.sh", b"rm -r /")),
    Bundle("a hidden file more", _write(".profile", b"evil")),
    Bundle("a pickle more", _write("graph/cpu/weights.pkl", b"\x80\x04.")),
    Bundle("a library more", _write("graph/cpu/custom_ops.so", b"\x7fELF")),
    Bundle("a name in other letters", _write("license", b"MIT")),
    Bundle("a name beyond ASCII", _write("LIC\u00c9NSE", b"MIT")),
    Bundle("a link for weights", _replaced(WEIGHTS, lambda p: p.symlink_to("/dev/zero"))),
    Bundle(
        "a link to what was there",
        _replaced("LICENSE", lambda p: p.symlink_to(p.parent / "mlbom.cdx.json")),
    ),
    Bundle("a pipe for weights", _replaced(WEIGHTS, os.mkfifo)),
    Bundle("a directory for the licence", _replaced("LICENSE", Path.mkdir)),
    Bundle(
        "a link for a directory",
        _linked_directory,
    ),
    Bundle("a manifest of 5 MB", _write("bundle.json", b"{" + b" " * 5_000_000 + b"}")),
    Bundle("a signature of 50 MB", lambda d: os.truncate(d / "model.sig", 50_000_000)),
    Bundle("a signature that is JSON", _write("model.sig", b"{}")),
    Bundle("a signature of lists in each other", _write("model.sig", b"[" * 100_000)),
    Bundle("another signer's", lambda d: a_signer(d.parent).sign(d)),
    Bundle("a manifest that is new", lambda d: write_manifest(d, name="other")),
    Bundle("signed: a file that is not listed", _leave_out, signed=True),
    _resigned(format="appliance-bundle/2"),
    _resigned(name="../../evil"),
    _resigned(version="a/b"),
    _resigned(kind="program"),
    _resigned(files=[]),
    _resigned(files=[_entry("../../../evil")]),
    _resigned(files=[_entry("/evil")]),
    _resigned(files=[_entry("a"), _entry("A")]),
    _resigned(files=[_entry("a", 10**15)]),
    _resigned(tokenizer="../tokenizer.json"),
    _resigned(graphs=[]),
    _resigned(
        encoder={"dimensions": 1 << 40, "max_length": 1, "pooling": "mean", "normalize": True}
    ),
    _resigned(auto_map={"AutoModel": "evil.py"}),
]
