"""Changing which models a node has and serves.

Owns the order of a change: verified, imported and compiled first, then written to the audit log,
then made true in the store, then told to the engine. Refuses to touch what is being served until
its successor is loaded: the engine loads the new version beside the old one. A record in the
audit log may thus precede a change that a power cut prevented, never the other way round.

On a node with a GPU one runtime computes everything that is served, so models are compiled
together; where a change asks for the other runtime, the engine starts again with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from appliance.audit import MAX_TEXT, admin_event
from appliance.bundle.adapter import check_any_base
from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import Adapted
from appliance.bundle.verify import VerifiedBundle, verify_metadata
from appliance.compiler import Compiled, Record, compiled_as, ensure_artifacts, read_record
from appliance.compiler.runtime import release_python
from appliance.config import Config, gpu_python
from appliance.errors import (
    ConflictError,
    NotFoundError,
    UnsupportedError,
)
from appliance.interpreter import choose_interpreter
from appliance.model_store import ModelStore, StoredBundle
from appliance.trust.node_key import NodeKey
from appliance.trust.store import TrustStore
from appliance.trust.withdrawn import Withdrawn
from installer import memory
from installer.gpu import Gpus
from installer.gpu_remedies import remedy
from installer.install import installing, now
from installer.media import open_media
from installer.media.opening import media_below, named
from installer.node import Node
from installer.progress import Progress
from installer.staging import current_release
from installer.told import manifests_of, tell_engine


class Models:
    """The models of one node, changed by an operator."""

    def __init__(
        self, config: Config, node: Node, progress: Progress, *, python: Path | None = None
    ) -> None:
        """`python`: the interpreter of the release that will serve; the current one if None."""
        self.store = ModelStore(config.layout.models)
        self._config = config
        self._layout = config.layout
        self._node = node
        self._progress = progress
        self._python = python or release_python(config.layout)
        self._compiled: dict[frozenset[str], Compiled] = {}
        """Digests -> what this command has compiled or found: nothing is asked twice."""
        self._advised: set[str] = set()
        """What was said already of how to have the GPU compute."""
        self._read: set[str] = set()
        """Digests of bundles whose artifacts this command has made or read whole."""

    def changing(self) -> AbstractContextManager[object]:
        """Hold this for a whole change; waits for an installation or another change to end."""
        return installing(self._layout, self._progress)

    def verified(self, source: Path) -> Sequence[VerifiedBundle]:
        """The bundles in `source`: media, or the directory of one bundle. Raises NotFoundError."""
        trust = TrustStore(self._layout.trust)
        if (source / MANIFEST_NAME).is_file():
            return [verify_metadata(source, trust.signers())]
        if (source / "metadata").is_dir():
            return open_media(source, trust, None, now()).bundles
        raise NotFoundError(
            f"{source} is neither a bundle nor media",
            hint=f"name the directory that holds {MANIFEST_NAME}, or the media's"
            + named(
                [found.parent for found in sorted(source.glob(f"*/{MANIFEST_NAME}"))]
                + media_below(source)
            ),
        )

    def add(self, verified: Sequence[VerifiedBundle]) -> list[StoredBundle]:
        """Import and compile; what is served stays as it is. Idempotent.

        What the packager has withdrawn is refused (ConflictError).

        Bases come before their adapters in what is returned. An adapter whose base is neither here
        nor among `verified` is refused before anything is imported.
        """
        withdrawn = self.withdrawn
        for manifest in (bundle.manifest for bundle in verified):
            withdrawn.check_bundle(manifest.name, manifest.version)
        coming = [bundle.manifest for bundle in verified]
        self._check_bases(coming)
        served = manifests_of(self.store.active())
        new = {m.name: m for m in coming if m.name not in served}
        memory.require(served | new, before=served, gpu=self._has_gpu)
        ordered = sorted(verified, key=lambda bundle: bundle.manifest.kind == "adapter")
        bundles = [self._import(bundle) for bundle in ordered]
        self.compile(bundles)
        return bundles

    def foretell(self, coming: Sequence[Manifest]) -> None:
        """Say which models callers will miss for a while once `coming` take their places."""
        served = manifests_of(self.store.active())
        wanted = served | {manifest.name: manifest for manifest in coming}
        for said in memory.interruptions(served, wanted, gpu=self._has_gpu):
            self._progress.note(said)

    def _check_bases(self, coming: Sequence[Manifest]) -> None:
        there = [bundle.manifest for bundle in self.store.bundles()]
        for manifest in coming:
            if manifest.as_adapter is not None:
                check_any_base(manifest, [*coming, *there])

    def compile(self, bundles: Sequence[StoredBundle]) -> None:
        """Make this machine's artifacts of `bundles`, unless they are there.

        And of the active models: one engine must be able to load them all.
        """
        digests = {bundle.digest for bundle in self._computed(bundles)}
        if not any(digests <= known for known in self._compiled):
            self._ensure(bundles)

    def settle(self) -> bool:
        """Let the engine run with what computes everything that is active, from its next start on.

        True if that is another runtime than before.
        """
        python = self._python
        if self.store.active() and self._has_gpu:
            python = self._ensure([]).runtime.python
        return choose_interpreter(self._layout, python)

    def _ensure(self, bundles: Sequence[StoredBundle]) -> Compiled:
        """Artifacts of `bundles` and of everything that is active, for one runtime.

        Those of `bundles` are read whole, once a command; the engine reads the others itself.
        """
        wanted = {bundle.digest: bundle for bundle in self._computed(bundles)}
        key = frozenset(wanted)
        if key not in self._compiled:
            unread = ({bundle.digest for bundle in bundles} & key) - self._read
            self._compiled[key] = ensure_artifacts(
                self._layout,
                [bundle for digest, bundle in wanted.items() if digest in unread],
                NodeKey.load(self._layout.node),
                beside=[bundle for digest, bundle in wanted.items() if digest not in unread],
                user=self._node.engine_user,
                python=self._python,
                settings=self._config.engine,
                progress=self._progress.step,
                made=self._made,
            )
            self._read |= unread
        return self._compiled[key]

    def _computed(self, bundles: Sequence[StoredBundle]) -> list[StoredBundle]:
        """`bundles` and what is active, but for adapters: their base's graphs compute them."""
        every = (*bundles, *self.store.active().values())
        return [bundle for bundle in every if bundle.manifest.kind != "adapter"]

    @property
    def _has_gpu(self) -> bool:
        """Whether the release that serves has programs for a GPU."""
        return gpu_python(self._python).exists()

    def heed_withdrawals(self) -> None:
        """Say and write down what the packager has withdrawn of what is here: release and bundles.

        It goes on: what becomes of it is the operator's choice.
        """
        self._heed_release()
        withdrawn = self.withdrawn
        active = {bundle.digest for bundle in self.store.active().values()}
        for bundle in self.store.bundles():
            if (found := withdrawn.bundle(bundle.name, bundle.version)) is None:
                continue
            served = ", which is being served," if bundle.digest in active else ""
            self._progress.note(f"{bundle.name} {bundle.version}{served} was {found}")
            self.record("models.withdrawn", bundle, reason=found.reason)

    def _heed_release(self) -> None:
        """Of the release that runs now."""
        release = current_release(self._layout)
        if release is None:
            return
        found = self.withdrawn.release(release.directory.name)
        if found is None:
            return
        self._progress.note(f"the release {release.directory.name}, which is in use, was {found}")
        admin_event(
            self._layout,
            self._config.audit,
            "releases.withdrawn",
            target=release.directory.name,
            version=release.version,
            reason=found.reason,
        )

    @property
    def withdrawn(self) -> Withdrawn:
        """What the packager has taken back, as far as this node has heard."""
        return TrustStore(self._layout.trust).withdrawn()

    def activate(self, name: str, version: str, *, even_withdrawn: bool = False) -> None:
        """Serve this version of `name` from now on. Idempotent.

        Raises ConflictError if the packager has withdrawn it, unless `even_withdrawn`: then that
        is recorded, and once it is served, that it is.
        """
        found = self.withdrawn.bundle(name, version)
        bundle = self.store.get(name, version)
        if found is None or bundle in self.store.active().values():
            self.activate_all([bundle])
            return
        if not even_withdrawn:
            raise found.refusal(
                f"{name} {version}",
                hint="choose another version, or add --even-withdrawn, which is recorded",
            )
        self.record("models.insist-withdrawn", bundle, reason=found.reason)
        self.activate_all([bundle])
        self.record("models.accept-withdrawn", bundle, reason=found.reason)

    def activate_all(self, bundles: Sequence[StoredBundle]) -> None:
        """Serve these from now on, as one change, which one rollback takes back. Idempotent."""
        before = self.store.active()
        wanted = {bundle.name: bundle for bundle in bundles if bundle not in before.values()}
        if not wanted:
            return
        changed = list(wanted.values())
        self.store.check_activation(changed)
        served = manifests_of(before | wanted)
        memory.require(served, before=manifests_of(before), gpu=self._has_gpu)
        self.compile(changed)
        for bundle in changed:
            self._refuse_on_gpu(bundle, before | wanted)
        for bundle in changed:
            previous = before[bundle.name].version if bundle.name in before else ""
            self.record("models.activate", bundle, previous=previous)
        self.store.activate_all(changed)

    def _refuse_on_gpu(self, bundle: StoredBundle, served: dict[str, StoredBundle]) -> None:
        """Refuse an adapter whose base was compiled for the GPU from a graph without room.

        Raises UnsupportedError.
        """
        adapter = bundle.manifest.as_adapter
        if adapter is None:
            return
        base = served[adapter.base.name]
        if all(isinstance(g.adapted, Adapted) for g in base.manifest.variants("cuda")):
            return
        directory = self._ensure([base]).directories[base.digest]
        if read_record(directory, NodeKey.load(self._layout.node).public).provider != "cpu":
            raise UnsupportedError(
                f"{base.name} is computed by the GPU, by a graph without room for adapters",
                hint="build this base again with --adapters, and add it in a new version",
                code="adapters_need_processor",
            )

    def rollback(self) -> None:
        """Go back to the set of models before the last change.

        Raises ConflictError if that would serve anew what the packager has withdrawn.
        """
        withdrawn, now_served = self.withdrawn, self.store.active().values()
        for bundle in self.store.earlier().values():
            if bundle not in now_served:
                withdrawn.check_bundle(bundle.name, bundle.version)
        number = self.store.current_generation().number
        admin_event(
            self._layout, self._config.audit, "models.rollback", previous=f"generation {number}"
        )
        self.store.rollback()
        self.compile([])

    def remove(self, name: str, version: str, *, even_active: bool) -> int:
        """Delete one version; returns the bytes that became free."""
        bundle = self.store.get(name, version)
        active = self.store.active().get(name)
        if active is not None and active.digest == bundle.digest:
            if not even_active:
                raise ConflictError(
                    f"{name} {version} is being served",
                    hint=f"activate another version of {name} first, or add --active",
                )
            self.store.check_deactivation(name)
            self.record("models.deactivate", bundle)
            self.store.deactivate(name)
            self.serve_active()
        self.record("models.remove", bundle)
        self.store.remove(name, version)
        return self.store.collect()

    def computed(self, bundle: StoredBundle) -> str:
        """What computes an active model, and why nothing faster does; empty for an adapter."""
        if bundle.manifest.kind == "adapter":
            return ""
        directory = self._ensure([]).directories[bundle.digest]
        record = read_record(directory, NodeKey.load(self._layout.node).public)
        return "; ".join(compiled_as(record))

    def recompile(self) -> bool:
        """Fit what is active to a machine that has changed, and serve it; False if it does not run.

        The driver, the GPU or the processor may be another. Idempotent.
        """
        self.compile([])
        self.settle()
        if self._node.is_system:
            with self._node.running(self._progress):  # what ended for want of artifacts starts
                return self.tell_engine()
        return self.tell_engine()

    def serve_active(self) -> bool:
        """Let the engine serve what is active, with its runtime; False if it does not run."""
        if self.settle():
            self._node.restart_engine(self._progress)
        return self.tell_engine()

    def tell_engine(self) -> bool:
        """Make the engine serve exactly the active models; False if it does not run."""
        return tell_engine(self._layout, self.store, self._progress, gpu=self._has_gpu)

    def _import(self, verified: VerifiedBundle) -> StoredBundle:
        name = f"{verified.manifest.name} {verified.manifest.version}"
        with self._progress.bytes(f"importing {name}", verified.size) as advance:
            return self.store.import_bundle(verified, advance=advance)

    def _made(self, bundle: StoredBundle, record: Record) -> None:
        """Say and write down what computes a model, and why nothing faster does."""
        if any(refusal.code != "no_gpu" for refusal in record.reasons):
            name = f"{bundle.name} {bundle.version}"
            self._progress.note(f"{name}: {'; '.join(compiled_as(record))}")
            helps = remedy(record.reasons, Gpus())
            if helps and helps not in self._advised:
                self._progress.note(f"to have the GPU compute: {helps}")
                self._advised.add(helps)
        for line in in_records(compiled_as(record)):
            self.record("models.compile", bundle, reason=line)

    def record(self, action: str, bundle: StoredBundle, **details: str) -> None:
        """Write an administrative record about `bundle`."""
        admin_event(
            self._layout,
            self._config.audit,
            action,
            target=bundle.name,
            version=bundle.version,
            digest=bundle.digest,
            **details,
        )


def in_records(parts: Sequence[str]) -> list[str]:
    """`parts` joined into as few texts as an audit record's field holds."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 2 <= MAX_TEXT:
            lines[-1] += f"; {part}"
        else:
            lines.append(part)
    return lines
