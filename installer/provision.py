"""`appliance install`, second half: the staged release sets up the node it is to run on.

`provision` reads as the specification. Every step finds out by itself whether it has been done,
so a killed installation is finished by running it again, and running it once more changes
nothing. Refuses to leave a node worse than before: if the new release does not prove itself, the
former one and its models come back.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.audit import acting_as_owner, admin_event, create_signer
from appliance.config import Config, Layout, load_config
from appliance.errors import ApplianceError
from appliance.fsops import hash_regular, make_dirs
from appliance.interpreter import choose_interpreter, engine_python
from appliance.model_store import Generation, StoredBundle
from appliance.model_store.blobs import storage_errors
from appliance.trust.node_key import NodeKey
from appliance.trust.store import TrustStore
from installer import tls
from installer.cli.output import err, out, print_error, print_fields
from installer.first_key import first_key_was_shown, offer_first_key
from installer.install import installing, now
from installer.kept import kept_releases, read_kept, write_kept
from installer.media import DOCS, Media, open_media
from installer.media.release import RELEASE
from installer.models import Models
from installer.node import Node, node_at
from installer.progress import Progress, progress_for
from installer.proof import Proof, prove
from installer.staging import InstalledRelease, current_release, release_of, remove_others


@dataclass(frozen=True, slots=True)
class Installed:
    """What the operator is told at the end."""

    release: str
    base_url: str
    models: dict[str, str]
    proof: Proof
    audit_key: str
    """The verifier key that an auditor pins."""
    api_key: str | None
    """Shown by the installation that made it, and by no other."""


def provision(
    source: Path,
    config: Config,
    node: Node,
    progress: Progress,
    *,
    allow_expired: bool = False,
    gpu: bool = False,
) -> Installed:
    """Set up the node from media whose release is staged, and prove that it serves.

    `gpu`: what is staged is the release for a node with a GPU.
    Raises VerificationError, ConflictError, CapacityError, StorageError, UnavailableError.
    """
    layout = config.layout
    with installing(layout, progress), storage_errors(layout.state):
        trust = TrustStore(layout.trust)
        media = open_media(source, trust, None, now(), allow_expired=allow_expired)
        release = release_of(layout, media, gpu=gpu)
        audit_key = _create_keys(layout)
        tls.ensure(config)
        models = Models(config, node, progress, python=release.python)
        bundles = models.add(media.bundles)
        models.heed_withdrawals()
        _copy_documents(media, layout)
        previous = current_release(layout)
        _remember(layout, previous, release, models)
        with undone_if_it_fails(previous, node, models, progress):
            models.activate_all(bundles)
            models.settle()
            node.deploy(release)
            with node.running(progress):
                models.tell_engine()
                progress.step("asking for one completion as a proof")
                proof = prove(config, list(models.store.active().values()))
        _record(config, media, previous)
        kept = read_kept(layout).with_proved(release)
        write_kept(layout, kept)
        if previous != release:
            remove_others(layout, kept_releases(layout, kept))
        return Installed(
            release=media.release.version,
            base_url=config.base_url,
            models=_versions(models.store.active()),
            proof=proof,
            audit_key=audit_key,
            api_key=offer_first_key(layout),
        )


def _create_keys(layout: Layout) -> str:
    """The node's signing key and the audit log's; the latter's verifier key."""
    node_key = NodeKey.create(layout.node)
    with acting_as_owner(layout.audit_key):
        return create_signer(layout.audit_key, f"appliance-{node_key.public.keyid[:16]}")


def _remember(
    layout: Layout, previous: InstalledRelease | None, release: InstalledRelease, models: Models
) -> None:
    """Write down what an update begins from: the way back to it, once this release is proved."""
    number = models.store.current_generation().number
    if previous is not None and previous != release and previous.is_complete() and number > 0:
        write_kept(layout, read_kept(layout).with_update(previous, number))


def _copy_documents(media: Media, layout: Layout) -> None:
    """Make the node's documentation that of the media."""
    for file in media.docs:
        target = layout.docs / file.path.removeprefix(DOCS)
        make_dirs(target.parent, mode=0o755)
        if not target.exists() or hash_regular(target, name=file.path)[1] != file.sha256:
            media.copy(file, target)


@contextmanager
def undone_if_it_fails(
    previous: InstalledRelease | None, node: Node, models: Models, progress: Progress
) -> Iterator[None]:
    """On a failure, go back to the release and the models that served before, if there were any."""
    generation = models.store.current_generation()
    former = engine_python(node.layout, previous.python) if previous is not None else None
    try:
        yield
    except ApplianceError as error:
        now_current = (current_release(node.layout), models.store.current_generation())
        worked_before = previous is not None and previous.is_complete() and generation.number > 0
        if (
            previous is not None
            and former is not None
            and worked_before
            and now_current != (previous, generation)
        ):
            progress.note(f"this failed: {error.message}")
            progress.step(f"going back to release {previous.version} and its models")
            _go_back(previous, former, generation, node, models, progress)
        raise


def _go_back(
    previous: InstalledRelease,
    former: Path,
    generation: Generation,
    node: Node,
    models: Models,
    progress: Progress,
) -> None:
    """Best effort: the failure that led here is the one to report. `former` ran the engine."""
    try:
        choose_interpreter(node.layout, former)
        models.store.go_back_to(generation)
        node.deploy(previous)
        with node.running(progress):
            models.tell_engine()
    except ApplianceError as error:
        progress.note(f"this does not start either: {error.message}")


def _record(config: Config, media: Media, previous: InstalledRelease | None) -> None:
    stale = ", ".join(media.targets.stale)
    admin_event(
        config.layout,
        config.audit,
        "install",
        version=media.release.version,
        previous=previous.version if previous else "",
        digest=media.targets.files[RELEASE].sha256,
        reason=f"expired metadata accepted: {stale}" if stale else "",
    )


def _versions(active: dict[str, StoredBundle]) -> dict[str, str]:
    return {name: bundle.version for name, bundle in active.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m installer.provision MEDIA ROOT`: how the first half hands over."""
    parser = argparse.ArgumentParser(prog="appliance install")
    parser.add_argument("media", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--allow-expired", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args(arguments)
    progress = progress_for(err, sys.stdout, as_json=options.as_json)
    try:
        config = load_config(options.root)
        installed = provision(
            options.media,
            config,
            node_at(config.layout),
            progress,
            allow_expired=options.allow_expired,
            gpu=options.gpu,
        )
    except ApplianceError as error:
        print_error(error, as_json=options.as_json)
        return error.exit_status
    _show(installed, config, as_json=options.as_json)
    first_key_was_shown(config.layout)
    return 0


def _show(installed: Installed, config: Config, *, as_json: bool) -> None:
    document = asdict(installed)
    if as_json:
        sys.stdout.write(json.dumps({"event": "result", **document}) + "\n")
        sys.stdout.flush()
        return
    proof = installed.proof
    out.print("The node serves." if config.layout.root == Path("/") else "The node is installed.")
    fields = {
        "endpoint": installed.base_url,
        "models": ", ".join(f"{name} {version}" for name, version in installed.models.items()),
        "proof": f"{proof.model}, {proof.tokens} tokens in {proof.seconds:.1f} s",
        "audit key": installed.audit_key,
    }
    if installed.api_key:
        fields["API key"] = f"{installed.api_key}  (shown this once: keep it)"
    print_fields(fields)
    if config.layout.root != Path("/"):
        out.print(f"start it with: {config.layout.command} serve", markup=False)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
