"""`appliance install`, first half: from media that nobody trusts yet to a staged release.

`install` reads as the specification. It runs on a bare CPython with what appliance.pyz carries,
so nothing here imports what comes with the release. Everything after it is the work of the
release itself (`installer.provision`), in its own interpreter: each release knows best how a
node of its kind is set up.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from appliance.bundle.footprint import artifact_bytes
from appliance.bundle.manifest import Manifest
from appliance.config import Config, Layout
from appliance.errors import LockedError, NotFoundError, PreflightError, StorageError
from appliance.fsops import exclusive_lock
from appliance.model_store import ModelStore
from appliance.model_store.blobs import storage_errors
from appliance.trust.store import TrustStore
from installer import gpu_preflight, memory, preflight
from installer.disks import full_below
from installer.gpu import MACHINE, Gpus, look
from installer.media import Media, open_media
from installer.node import Node
from installer.progress import Progress
from installer.pyz import embedded_root
from installer.room import Share
from installer.staging import InstalledRelease, current_release, release_of, space_needed, stage


def install(
    source: Path,
    config: Config,
    node: Node,
    progress: Progress,
    *,
    allow_expired: bool = False,
    processor_only: bool = False,
    machine: Path = MACHINE,
) -> InstalledRelease:
    """Verify the media at `source`, name what stands in the way, and stage their release.

    A GPU is used if there is one and the media have programs for it, unless `processor_only`.
    `machine` has the kernel's trees that show it. Nothing on the node changes before every check
    has passed. Raises VerificationError, PreflightError with all blockers, CapacityError,
    StorageError.
    """
    progress.step("verifying the media")
    with _borrowed_trust(node.layout) as trust:
        media = open_media(source, trust, _anchor(), now(), allow_expired=allow_expired)
        withdrawn = trust.withdrawn()
    progress.note(f"release {media.release.version}, {_age(media)}")
    facts = _facts(config, node, look(machine))
    gpu = gpu_preflight.uses_gpu(facts.gpus, _gpu_needs(media, node, wanted=not processor_only))
    needs = _needs(media, config, node, wanted=not processor_only, gpu=gpu)
    blockers = preflight.blockers(facts, needs)
    if blockers:
        raise PreflightError(blockers)
    release = release_of(node.layout, media, gpu=gpu)
    if release != current_release(node.layout):
        withdrawn.check_release(release.directory.name)
    for remark in gpu_preflight.remarks(facts.gpus, needs.gpu):
        progress.note(f"{remark.message}: {remark.remedy}")
    before, after = _served_then(media, ModelStore(node.layout.models))
    for said in memory.interruptions(before, after, gpu=gpu):
        progress.note(said)
    progress.step("preparing the node")
    with storage_errors(node.layout.state):
        node.prepare()
    with installing(node.layout, progress) as lock, storage_errors(node.layout.state):
        trust = TrustStore(node.layout.trust)
        media = open_media(source, trust, _anchor(), now(), allow_expired=allow_expired)
        return stage(media, node.layout, progress, gpu=gpu, lock=lock)


def hand_over(
    release: InstalledRelease, source: Path, layout: Layout, *, as_json: bool, allow_expired: bool
) -> int:
    """Let `release` finish the installation; its exit status. It writes to our own streams."""
    command = [str(release.python), "-I", "-m", "installer.provision"]
    flags = {"--json": as_json, "--allow-expired": allow_expired, "--gpu": release.uses_gpu()}
    command += [str(source), str(layout.root), *(flag for flag, on in flags.items() if on)]
    return subprocess.run(command).returncode


@contextmanager
def installing(layout: Layout, progress: Progress) -> Iterator[int]:
    """Hold the node's lock against other changes; waits for another one, and says so.

    Its descriptor, for a program that goes on under it.

    Raises NotFoundError if nothing is installed here, StorageError without the right to change it.
    """
    path = layout.install_state / "lock"
    if not layout.state.is_dir():
        raise NotFoundError(
            f"nothing is installed in {layout.root}", hint="run `appliance install MEDIA` first"
        )
    if not os.access(layout.install_state, os.W_OK):
        raise StorageError(
            f"{layout.state} cannot be changed by this user", hint="run the command as root"
        )
    with ExitStack() as lock:
        try:
            held = lock.enter_context(exclusive_lock(path))
        except LockedError:
            progress.note("another command changes this node: waiting for it")
            held = lock.enter_context(exclusive_lock(path, wait=True))
        yield held


@contextmanager
def _borrowed_trust(layout: Layout) -> Iterator[TrustStore]:
    """The node's trust state to look with: what it learns is forgotten."""
    with tempfile.TemporaryDirectory(prefix="appliance-trust-") as directory:
        copy = Path(directory) / "trust"
        if layout.trust.is_dir():
            shutil.copytree(layout.trust, copy)
        yield TrustStore(copy)


def _anchor() -> bytes | None:
    """The root of trust inside appliance.pyz; None in an installed release, which has state."""
    try:
        return embedded_root()
    except NotFoundError:
        return None


def _facts(config: Config, node: Node, gpus: Gpus) -> preflight.Facts:
    release = current_release(node.layout)
    return preflight.measure(
        config,
        running=node.is_running(),
        installed=release.version if release else "",
        gpus=gpus,
    )


def _gpu_needs(media: Media, node: Node, *, wanted: bool) -> gpu_preflight.GpuNeeds:
    for_gpus = [bundle.size for bundle in media.bundles if bundle.manifest.variants("cuda")]
    return gpu_preflight.GpuNeeds(
        offered=media.cuda13 is not None,
        wanted=wanted,
        tensorrt=media.cuda13 is not None and media.cuda13.has_tensorrt,
        smallest_model=min(for_gpus, default=0),
        system_install=node.is_system,
    )


def _needs(media: Media, config: Config, node: Node, *, wanted: bool, gpu: bool) -> preflight.Needs:
    layout = node.layout
    store = ModelStore(layout.models)
    missing = [(bundle, store.missing_bytes(bundle)) for bundle in media.bundles]
    _, served = _served_then(media, store)
    compiled = sum(artifact_bytes(b.manifest, gpu=gpu) for b, count in missing if count)
    return preflight.Needs(
        system_install=node.is_system,
        root=node.layout.root,
        port=config.api.listen_port,
        version=media.release.version,
        memory=memory.needed(served, gpu=gpu),
        issued_at=media.targets.issued_at.timestamp(),
        room=(
            Share(layout.state, "what the node records", preflight.SPARE_DISK_BYTES),
            *space_needed(layout, media, gpu=gpu),
            Share(layout.models, "the models", sum(count for _, count in missing)),
            Share(layout.artifacts, "what is compiled of them", compiled),
            Share(layout.audit, "the audit log", full_below(config)),
        ),
        gpu=_gpu_needs(media, node, wanted=wanted),
    )


def _served_then(
    media: Media, store: ModelStore
) -> tuple[dict[str, Manifest], dict[str, Manifest]]:
    """What is served before and after the media are installed."""
    before = _served(store)
    return before, before | {b.manifest.name: b.manifest for b in media.bundles}


def _served(store: ModelStore) -> dict[str, Manifest]:
    """What goes on being served; nothing to who may not read it, and is told so as a blocker."""
    try:
        return {name: bundle.manifest for name, bundle in store.active().items()}
    except PermissionError:
        return {}


def _age(media: Media) -> str:
    days = (now() - media.targets.issued_at).days
    return f"signed {days} days ago" if days > 0 else "signed today"


def now() -> datetime:
    """The time by this machine's clock, UTC."""
    return datetime.now(UTC)
