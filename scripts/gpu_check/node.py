"""A node with one model, as an installation leaves it: built, signed, imported, compiled."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from appliance.bundle.verify import VerifiedBundle
from appliance.compiler import ensure_artifact
from appliance.config import Layout
from appliance.fsops import make_dirs
from appliance.model_store import ModelStore, StoredBundle
from appliance.model_store.blobs import BlobStore
from appliance.trust.node_key import NodeKey
from bench_peers.checkpoint import Shape
from bench_peers.work import say
from gpu_check.checkpoint import write_checkpoint
from installer.checkpoint import build_bundle
from installer.checkpoint.quantize import Precision
from tests.fakes.bundles import write_signer


class Node:
    """One root directory, and the seconds that each step took."""

    def __init__(self, root: Path) -> None:
        shutil.rmtree(root, ignore_errors=True)
        self.layout = Layout(root)
        make_dirs(self.layout.node, mode=0o755)
        self._key = NodeKey.create(self.layout.node)
        self._root = root
        self.seconds: dict[str, float] = {}

    def write(self, shape: Shape) -> Path:
        """The checkpoint of this shape."""
        checkpoint = self._root / "checkpoint"
        with _Timed(self.seconds, "checkpoint"):
            write_checkpoint(shape, checkpoint, tied=shape.hidden <= 1024)
        return checkpoint

    def add(
        self, checkpoint: Path, name: str, precision: Precision, *, adapters: bool = False
    ) -> StoredBundle:
        """Build the bundle and bring it into the model store."""
        bundle = self._root / "bundle"
        with _Timed(self.seconds, "bundle build"):
            build_bundle(
                checkpoint, bundle, name=name, version="1.0", precision=precision,
                signer=None, created=1_700_000_000, adapters=adapters,
            )  # fmt: skip
        with _Timed(self.seconds, "signing and import"):
            verified = write_signer(self._root).sign(bundle)
            self._settle(verified)
            stored = ModelStore(self.layout.models).import_bundle(verified, advance=lambda _: None)
            ModelStore(self.layout.models).activate(name, "1.0")
        shutil.rmtree(bundle)
        return stored

    def _settle(self, verified: VerifiedBundle) -> None:
        """Put the files where the store would copy them to, which it then does not.

        They are this process's own: nobody else has them, as one who brings a stick has.
        """
        blobs = BlobStore(self.layout.models / "blobs")
        blobs.prepare()
        for entry in verified.files:
            (verified.directory / entry.path).rename(blobs.path(entry.sha256))

    def compile(self, bundle: StoredBundle, python: Path) -> None:
        """Compile for the fastest provider that this machine has."""
        with _Timed(self.seconds, "compilation"):
            ensure_artifact(self.layout, bundle, self._key, python=python, progress=say)


class _Timed:
    def __init__(self, seconds: dict[str, float], step: str) -> None:
        self._seconds, self._step = seconds, step

    def __enter__(self) -> None:
        say(self._step)
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._step] = time.perf_counter() - self._start
