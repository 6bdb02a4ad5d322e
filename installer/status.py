"""How a node is doing, as one document.

Owns the questions: supervisor, endpoint, engine, model store, disk. Refuses to fail because a
part of the node does: what cannot be learned is said in its place.
"""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance.audit.signer import VKEY_NAME
from appliance.compiler import Comparison, Fit, Record, Refusal, read_record, why_not_faster
from appliance.config import Config, Layout
from appliance.errors import ApplianceError
from appliance.model_store import ModelStore, StoredBundle
from appliance.pb import engine_v1_pb2 as pb
from appliance.trust.node_key import PUBLIC_NAME, NodePublicKey
from appliance.trust.store import Anchored, TrustStore
from installer import local_endpoint, tls
from installer.disks import Disk, disks_of
from installer.engine_client import connect
from installer.failures import Failure
from installer.gpu import MACHINE, Gpus, look
from installer.gpu_remedies import remedy
from installer.node import Node
from installer.staging import InstalledRelease, current_release

_ANSWER_SECONDS = 5.0


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One active model. Without an engine, what it has loaded is unknown and left empty."""

    name: str
    version: str
    kind: str
    state: str = "not loaded"
    provider: str = ""
    """ONNX Runtime's name of what computes it."""
    gpus: int = 0
    """On how many it is loaded, whole on each; 0 for the processor."""
    compiled_for: str = ""
    """What its artifact is for: tensorrt, cuda or cpu."""
    reason: str = ""
    """Why nothing faster computes it; empty if nothing is."""
    reasons: tuple[Refusal, ...] = ()
    """The same, for each faster provider."""
    remedy: str = ""
    """What the operator can do about it; empty if nothing."""
    tower: Refusal | None = None
    """Why its images are seen by the processor though it is not; None if they are not."""
    unrecorded: Refusal | None = None
    """Why its steps on a GPU are not replayed; None if they are."""
    golden: Comparison | None = None
    """How near its logits are to the processor's; None for the processor."""
    fit: Fit | None = None
    """What it takes of the GPU's memory; None for the processor."""
    context_length: int = 0
    memory_bytes: int = 0
    error: str = ""
    hint: str = ""
    """What helps against the error."""
    withdrawn: str = ""
    """What the packager said when taking this version back; empty if that has not happened."""

    @property
    def computed_by(self) -> str:
        """The provider, and on how many GPUs if there are several; for people."""
        return f"{self.provider}, {self.gpus} GPUs" if self.gpus > 1 else self.provider


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What the endpoint says of itself."""

    status: str = "unreachable"
    engine: bool = False
    audit: bool = False


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `appliance status`."""

    root: str
    release: str
    programs: str
    """What the release has programs for, and which GPU there is."""
    state_missing: bool
    """A release is there, and nothing of what the node keeps: a disk is not mounted."""
    release_withdrawn: str
    """What the packager said when taking this release back; empty if that has not happened."""
    serving: bool
    """The endpoint answers, the audit log can be written, and no active model failed to load."""
    base_url: str
    services: dict[str, str]
    health: Health
    models: tuple[ServedModel, ...]
    generation: int
    tls: tls.Shown | None
    """The endpoint's certificate; None if it has none, or speaks in clear."""
    trust: Anchored | None
    """Whose media this node believes; None before the first."""
    audit_key: str
    """Verifier key of the audit log, if this user may read it."""
    disk_free_bytes: int
    disk_total_bytes: int
    disks: tuple[Disk, ...]
    """Where the node writes to, and whether there is room."""
    failures: tuple[Failure, ...]
    """Services that systemd does not start any more, or again and again."""


def status_of(config: Config, node: Node, *, machine: Path = MACHINE) -> Status:
    """Ask every part of the node how it is. Raises StorageError if this user may not know.

    `machine` has the kernel's trees that show a GPU.
    """
    layout = config.layout
    store = ModelStore(layout.models)
    health = _health(config)
    release = current_release(layout)
    gpus = look(machine)
    models = _models(layout, store, gpus)
    disk = shutil.disk_usage(_nearest(layout.state))
    return Status(
        root=str(layout.root),
        release=release.version if release else "",
        programs=_programs(gpus, release),
        state_missing=release is not None and not layout.node.exists(),
        release_withdrawn=_withdrawn(layout, release),
        serving=all_served(health, models),
        base_url=config.base_url,
        services=node.services(),
        health=health,
        models=models,
        generation=store.current_generation().number,
        tls=_certificate(config),
        trust=_trust(layout),
        audit_key=_audit_key(layout),
        disk_free_bytes=disk.free,
        disk_total_bytes=disk.total,
        disks=disks_of(config),
        failures=node.failures(),
    )


def all_served(health: Health, models: Sequence[ServedModel]) -> bool:
    """Whether the endpoint is well and the engine failed to load none of the active models."""
    return health.status == "ok" and not any(model.error for model in models)


def _nearest(directory: Path) -> Path:
    """`directory`, or where it would be made."""
    return next(each for each in (directory, *directory.parents) if each.is_dir())


def _programs(gpus: Gpus, release: InstalledRelease | None) -> str:
    if release is None:
        return "none"
    there = gpus.describe() if gpus.gpus or gpus.has_driver else "this machine has no NVIDIA GPU"
    return f"for the processor{' and for a GPU' if release.uses_gpu() else ''} ({there})"


def _withdrawn(layout: Layout, release: InstalledRelease | None) -> str:
    if release is None:
        return ""
    return str(TrustStore(layout.trust).withdrawn().release(release.directory.name) or "")


def _models(layout: Layout, store: ModelStore, gpus: Gpus) -> tuple[ServedModel, ...]:
    loaded = _loaded(layout)
    withdrawn = TrustStore(layout.trust).withdrawn()
    found = {name: withdrawn.bundle(b.name, b.version) for name, b in store.active().items()}
    return tuple(
        msgspec.structs.replace(
            shown,
            withdrawn=str(found[shown.name] or ""),
            remedy=remedy(shown.reasons, gpus),
        )
        for shown in (
            served_model(layout, name, bundle, loaded.get(bundle.digest))
            for name, bundle in store.active().items()
        )
    )


def served_model(
    layout: Layout, name: str, bundle: StoredBundle, model: pb.Model | None
) -> ServedModel:
    version, kind = bundle.version, bundle.manifest.kind
    if model is None:
        return ServedModel(name=name, version=version, kind=kind)
    record = _record(layout, model.artifact)
    return ServedModel(
        name=name,
        version=version,
        kind=kind,
        state=pb.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
        provider=model.provider,
        gpus=model.gpus,
        compiled_for=record.provider if record else "",
        reason="; ".join(why_not_faster(record)) if record else "",
        reasons=record.reasons if record else (),
        tower=record.tower if record else None,
        unrecorded=record.unrecorded if record else None,
        golden=record.compared if record else None,
        fit=record.fit if record else None,
        context_length=model.context_length,
        memory_bytes=model.memory_bytes,
        error=model.error,
        hint=model.hint,
    )


def _loaded(layout: Layout) -> dict[str, pb.Model]:
    """What the engine has, by bundle digest; nothing if it does not answer."""
    try:
        with connect(layout.engine_socket) as engine:
            return {model.bundle_digest: model for model in engine.models()}
    except ApplianceError:
        return {}


def _record(layout: Layout, artifact: str) -> Record | None:
    """What the node vouches for of an artifact; None if this user may not know."""
    try:
        node_key = NodePublicKey.load(layout.node / PUBLIC_NAME)
        return read_record(layout.artifacts / artifact, node_key) if artifact else None
    except (ApplianceError, OSError):
        return None


def _health(config: Config) -> Health:
    try:
        connection = local_endpoint.connection(config, _ANSWER_SECONDS)
    except ApplianceError:
        return Health()
    try:
        connection.request("GET", "/health")
        return msgspec.convert(json.loads(connection.getresponse().read()), Health)
    except (OSError, http.client.HTTPException, ValueError):
        return Health()
    finally:
        connection.close()


def _certificate(config: Config) -> tls.Shown | None:
    try:
        return tls.shown(config) if config.api.tls else None
    except ApplianceError:
        return None


def _trust(layout: Layout) -> Anchored | None:
    try:
        return TrustStore(layout.trust).anchored()
    except (ApplianceError, OSError):
        return None


def _audit_key(layout: Layout) -> str:
    try:
        return (layout.audit_key / VKEY_NAME).read_text("ascii").strip()
    except OSError:
        return ""
