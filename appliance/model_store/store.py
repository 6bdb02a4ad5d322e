"""The node's models: verified bundles, kept once, and which of them are served.

    lock                      held by every change; readers need none
    blobs/<sha256>            file contents, each once; blobs/incoming/ while copying
    bundles/<digest>/         one complete bundle as hard links to its blobs
    generations/NNNNNNNN.json sets of active models; generations/current points at one

Owns this directory. Refuses anything that is not a VerifiedBundle, a second bundle of the same
name and version, and the removal of what is being served. Every change is complete or absent
after a crash: a bundle appears by one rename, an activation by one moved link.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.bundle.adapter import adapters_of, check_set
from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import Manifest, decode, digest
from appliance.bundle.verify import VerifiedBundle
from appliance.errors import ConflictError, DigestError, NotFoundError, StorageError
from appliance.fsops import exclusive_lock, fsync_dir, make_dirs
from appliance.model_store.blobs import Advance, BlobStore, storage_errors
from appliance.model_store.generations import Generation, Generations


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """One bundle of the store; `directory` looks exactly like the bundle on the media."""

    name: str
    version: str
    digest: str
    directory: Path
    manifest: Manifest


class ModelStore:
    """All models of one node. Methods that change it raise LockedError if another process does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blobs = BlobStore(directory / "blobs")
        self._bundles = directory / "bundles"
        self._generations = Generations(directory / "generations")

    def import_bundle(self, verified: VerifiedBundle, *, advance: Advance) -> StoredBundle:
        """Copy a bundle in, hashing every byte while copying; idempotent and resumable per file.

        Raises ConflictError if this name and version exist with other contents, DigestError
        naming the first file whose bytes differ, CapacityError if the disk is full.
        """
        with self._changing():
            self._refuse_other_contents(verified)
            for entry in verified.files:
                name = verified.prefix + entry.path
                self._blobs.add_file(verified.directory, entry, name=name, advance=advance)
            target = self._bundles / verified.digest
            if not target.is_dir():
                self._link(verified, target)
            return _stored(target)

    def missing_bytes(self, verified: VerifiedBundle) -> int:
        """Bytes that importing `verified` would add to the disk."""
        return self._blobs.missing(verified.files)

    def bundles(self) -> list[StoredBundle]:
        """Every bundle, by name and age."""
        found = []
        for path in self._bundle_directories():
            with suppress(NotFoundError):  # removed while we looked
                found.append(_stored(path))
        return sorted(found, key=lambda b: (b.name, b.manifest.created, b.version))

    def get(self, name: str, version: str | None = None) -> StoredBundle:
        """One bundle; without `version` the active one, else the newest. Raises NotFoundError."""
        versions = [b for b in self.bundles() if b.name == name]
        if version is None:
            active = self.active().get(name)
            if active is not None:
                return active
        else:
            versions = [b for b in versions if b.version == version]
        if not versions:
            wanted = name if version is None else f"{name} {version}"
            raise NotFoundError(
                f"there is no model {wanted} on this node",
                hint="`appliance models list` shows what there is",
            )
        return versions[-1]

    def active(self) -> dict[str, StoredBundle]:
        """The models of the current generation, by name."""
        models = self._generations.current().models
        return {name: _stored(self._bundles / models[name]) for name in sorted(models)}

    def current_generation(self) -> Generation:
        """The generation that is served; number 0 if nothing was ever activated."""
        return self._generations.current()

    def generations(self) -> list[Generation]:
        """Every generation, oldest first."""
        return self._generations.all()

    def activate(self, name: str, version: str) -> Generation:
        """Serve this version of `name` from now on.

        Raises NotFoundError, and as `check_activation` does.
        """
        return self.activate_all([self.get(name, version)])

    def activate_all(self, bundles: Sequence[StoredBundle]) -> Generation:
        """Serve these versions from now on, as one change.

        Raises NotFoundError if one was removed, and as `check_activation` does.
        """
        with self._changing():
            kept = [self.get(bundle.name, bundle.version) for bundle in bundles]
            self.check_activation(kept)
            current = self._generations.current()
            return self._generations.advance(
                current.models | {bundle.name: bundle.digest for bundle in kept}
            )

    def check_activation(self, bundles: Sequence[StoredBundle]) -> None:
        """Raise unless `bundles` can be served beside what is: adapters need their base.

        Raises ConflictError, UnsupportedError or LayoutError, as `check_set` does.
        """
        served = {name: stored.manifest for name, stored in self.active().items()}
        check_set(served | {bundle.name: bundle.manifest for bundle in bundles})

    def deactivate(self, name: str) -> Generation:
        """Serve `name` no longer; its bundles stay.

        Raises NotFoundError if it is not active, ConflictError if an adapter needs it.
        """
        with self._changing():
            self.check_deactivation(name)
            models = dict(self._generations.current().models)
            if models.pop(name, None) is None:
                raise NotFoundError(
                    f"the model {name} is not active",
                    hint="`appliance models list` shows which models are",
                )
            return self._generations.advance(models)

    def check_deactivation(self, name: str) -> None:
        """Raise ConflictError if adapters are served whose base is `name`."""
        served = {other: stored.manifest for other, stored in self.active().items()}
        adapters = adapters_of(name, served)
        if adapters:
            raise ConflictError(
                f"{name} is the base of {', '.join(adapters)}, which would be served no longer",
                hint="remove the adapters first: `appliance models remove NAME VERSION --active`",
                code="adapter_base_in_use",
            )

    def earlier(self) -> dict[str, StoredBundle]:
        """What `rollback` would serve, by name. Raises ConflictError as that would."""
        generation = self._generations.before(self._generations.current())
        self._check_complete(generation)
        models = generation.models
        return {name: _stored(self._bundles / models[name]) for name in sorted(models)}

    def rollback(self) -> Generation:
        """Go back to the generation before the current one.

        Raises ConflictError if there is none or if one of its bundles was removed.
        """
        with self._changing():
            earlier = self._generations.before(self._generations.current())
            self._go_back_to(earlier)
            return earlier

    def go_back_to(self, generation: Generation) -> None:
        """Serve an earlier generation again. Raises ConflictError if a bundle was removed."""
        with self._changing():
            self._go_back_to(generation)

    def remove(self, name: str, version: str) -> StoredBundle:
        """Forget one version; `collect` frees its space. Raises ConflictError if it is active."""
        with self._changing():
            bundle = self.get(name, version)
            if bundle.digest in self._generations.current().models.values():
                raise ConflictError(
                    f"{name} {version} is being served",
                    hint=f"activate another version of {name} first",
                )
            doomed = self._bundles / f".{bundle.digest}.removed"
            shutil.rmtree(doomed, ignore_errors=True)  # of an earlier removal, not collected yet
            bundle.directory.rename(doomed)
            fsync_dir(self._bundles)
            return bundle

    def collect(self) -> int:
        """Delete what no bundle needs and what crashes left behind. Returns bytes freed."""
        with self._changing():
            for leftover in self._bundles.glob(".*"):
                shutil.rmtree(leftover)
            self._generations.collect()
            return self._blobs.collect()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with storage_errors(self._directory / "lock"):
            make_dirs(self._bundles, mode=0o755)
            self._blobs.prepare()
            self._generations.prepare()
        with exclusive_lock(self._directory / "lock"):
            yield

    def _go_back_to(self, generation: Generation) -> None:
        self._check_complete(generation)
        self._generations.go_back_to(generation)

    def _check_complete(self, generation: Generation) -> None:
        for name, bundle in generation.models.items():
            if not (self._bundles / bundle).is_dir():
                raise ConflictError(
                    f"generation {generation.number} needs a version of {name} that was removed",
                    hint="add that version again, or go to another one by "
                    f"`appliance models activate {name} VERSION`",
                )

    def _refuse_other_contents(self, verified: VerifiedBundle) -> None:
        name, version = verified.manifest.name, verified.manifest.version
        for bundle in self.bundles():
            same = (bundle.name, bundle.version) == (name, version)
            if same and bundle.digest != verified.digest:
                raise ConflictError(
                    f"{name} {version} is on this node already, with other contents",
                    hint="build the bundle under a new version, or remove the old one first",
                )

    def _link(self, verified: VerifiedBundle, target: Path) -> None:
        """Make the bundle's directory under a temporary name; the rename publishes it."""
        staging = self._bundles / f".{verified.digest}.incoming"
        with storage_errors(target):
            shutil.rmtree(staging, ignore_errors=True)
            make_dirs(staging, mode=0o755)
            for entry in verified.files:
                path = staging / entry.path
                make_dirs(path.parent, mode=0o755)
                os.link(self._blobs.path(entry.sha256), path)
            for directory, _, _ in os.walk(staging):
                fsync_dir(Path(directory))
            staging.rename(target)
            fsync_dir(self._bundles)

    def _bundle_directories(self) -> list[Path]:
        try:
            return [path for path in self._bundles.iterdir() if not path.name.startswith(".")]
        except FileNotFoundError:
            return []
        except PermissionError:
            raise StorageError(
                f"{self._directory} cannot be read by this user",
                hint="run the command as root or as a member of the group `appliance`",
            ) from None


def _stored(directory: Path) -> StoredBundle:
    try:
        data = (directory / MANIFEST_NAME).read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            f"the bundle {directory.name} is not in the model store",
            hint="add it again with `appliance models add`",
        ) from None
    if digest(data) != directory.name:
        raise DigestError(
            f"{directory / MANIFEST_NAME} was altered on this node",
            path=MANIFEST_NAME,
            hint="remove that directory and add the bundle again",
        )
    manifest = decode(data)
    return StoredBundle(manifest.name, manifest.version, directory.name, directory, manifest)
