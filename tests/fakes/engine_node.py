"""A node as the engine daemon finds it: key, model store, compiled artifacts. All real parts.

Owns the building of such a root from checkpoints, without the installer around it.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from appliance.compiler import Runtime, choose_runtime, ensure_artifact
from appliance.config import Layout
from appliance.fsops import make_dirs
from appliance.model_store import ModelStore, StoredBundle
from appliance.trust.node_key import NodeKey
from installer.checkpoint import build_bundle
from installer.checkpoint.adapter_build import build_adapter
from tests.fakes.bundles import write_signer


class EngineNode:
    """One root directory. `add` makes a checkpoint an active, compiled model of it."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        make_dirs(self.layout.node, mode=0o755)
        self._key = NodeKey.create(self.layout.node)
        self._signer = write_signer(root)
        self.store = ModelStore(self.layout.models)

    def add(
        self,
        checkpoint: Path,
        *,
        name: str,
        version: str = "1.0",
        precision: str = "fp32",
        activate: bool = True,
        compile_now: bool = True,
        adapters: bool = False,
        draft: Path | None = None,
    ) -> StoredBundle:
        """Build, sign, import, compile and activate a model."""
        out = self.layout.root / f"{name}-{version}"
        build_bundle(
            checkpoint,
            out,
            name=name,
            version=version,
            precision=precision,  # type: ignore[arg-type]
            adapters=adapters,
            draft=draft,
            signer=None,
            created=1_700_000_000,
        )
        bundle = self.store.import_bundle(self._signer.sign(out), advance=lambda _: None)
        if compile_now:
            ensure_artifact(self.layout, bundle, self._key, runtime=_runtime())
        if activate:
            self.store.activate(name, version)
        return bundle

    def add_adapter(
        self, checkpoint: Path, base: StoredBundle, *, name: str, activate: bool = True
    ) -> StoredBundle:
        """Build, sign, import and activate an adapter of `base`."""
        out = self.layout.root / f"{name}-1.0"
        build_adapter(
            checkpoint,
            out,
            name=name,
            version="1.0",
            base=base.directory,
            base_manifest=base.manifest,
            signer=None,
            created=1_700_000_000,
        )
        bundle = self.store.import_bundle(self._signer.sign(out), advance=lambda _: None)
        if activate:
            self.store.activate(name, "1.0")
        return bundle


@cache
def _runtime() -> Runtime:
    """A process of its own says what this machine is; it does so once for all models."""
    return choose_runtime(Path(sys.executable))
