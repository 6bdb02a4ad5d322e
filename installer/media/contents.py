"""Everything on the media but their metadata: programs, bundles, documents.

Owns the layout of the directory and the documents that pin it. Refuses bundles that no accepted
key signed, two bundles of one name and version, and a disk without room for it all. Bundles and
wheels are hashed while they are copied, so what is signed afterwards is what was checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import appliance
from appliance.bundle.specs import FileEntry
from appliance.bundle.verify import VerifiedBundle, verify_metadata
from appliance.errors import ConflictError
from appliance.fsops import hash_regular, walk_files
from appliance.model_store.blobs import copy_verified
from installer import pyz
from installer.keyring import Keyring
from installer.media.gpu_wheels import GpuWheels, gather, target_path
from installer.media.lockfile import Pin, write_lock
from installer.media.opening import DOCS, require_bundle
from installer.media.pyz_build import build_pyz
from installer.media.release import (
    BOOTSTRAP,
    RELEASE,
    REQUIREMENTS,
    Release,
    ReleaseFile,
    ReleaseWheel,
    check_file_size,
    describe,
    encode,
)
from installer.media.target import CUDA13, document_of, lock_of
from installer.media.target import encode as encode_target
from installer.media.text import readme
from installer.media.wheelhouse import Locks, Wheel, Wheelhouse, build_own_wheel, checkout
from installer.packager_disk import expect_room, taken
from installer.packager_hints import bundle_hints
from installer.progress import Progress
from installer.rotation.withdraw import refuse_withdrawn, refuse_withdrawn_release

WHEELS = "wheels"
_ALLOWANCE = 4_000_000
"""Bytes for README.txt, for what is signed last, and for directories."""


class Contents:
    """Writes the contents of one set of media into an empty directory."""

    def __init__(
        self,
        directory: Path,
        keyring: Keyring,
        progress: Progress,
        *,
        now: datetime,
        pythons: Sequence[str],
        locks: Locks,
        targets: Sequence[str] = (),
    ) -> None:
        self._directory = directory
        self._keyring = keyring
        self._progress = progress
        self._now = now
        self._pythons = tuple(pythons)
        self._locks = locks
        self._targets = tuple(targets)
        self.pyz_sha256 = ""

    def write(self, bundles: Sequence[Path], wheel_cache: Path) -> dict[str, bytes]:
        """Write it all; returns target path -> content of what pins it.

        Raises VerificationError for a bundle, ConflictError, UnavailableError, CapacityError,
        StorageError.
        """
        refuse_withdrawn_release(self._keyring, appliance.__version__)
        checked = self._checked(bundles)
        locks = self._locks
        with TemporaryDirectory() as scratch:
            own = build_own_wheel(Path(scratch))
            wheels = [*self._fetched(locks, wheel_cache), own]
            gpu = self._gathered(wheel_cache) if CUDA13 in self._targets else None
            extra = gpu.wheels if gpu is not None else ()
            programs = build_pyz(wheels, self._keyring.roots()[-1].read_bytes())
            self._expect_room([*wheels, *extra], programs, checked)
            self._copy_wheels({f"{WHEELS}/{wheel.path.name}": wheel for wheel in wheels})
            self._copy_wheels({target_path(wheel): wheel for wheel in extra})
            self._write_pyz(programs)
        self._copy_bundles(checked)
        self._copy_documents()
        requirements = locks.node + write_lock([_pin(own)])
        targets = {
            **self._keyring.listed(),
            RELEASE: encode(self._release(wheels, extra)),
            REQUIREMENTS: requirements.encode("ascii"),
            BOOTSTRAP: locks.bootstrap.encode("ascii"),
        }
        if gpu is not None:
            targets[document_of(CUDA13)] = encode_target(gpu.programs())
            targets[lock_of(CUDA13)] = gpu.lock(locks, _pin(own)).encode("ascii")
        return targets | {model.target: encode(model) for model in map(describe, checked)}

    def _checked(self, bundles: Sequence[Path]) -> list[VerifiedBundle]:
        signers = self._keyring.model_signers()
        checked: dict[str, VerifiedBundle] = {}
        for path in bundles:
            require_bundle(path)
            with bundle_hints():
                bundle = verify_metadata(path, signers, prefix=f"{path.name}/")
            refuse_withdrawn(self._keyring, bundle.manifest.name, bundle.manifest.version)
            directory = describe(bundle).directory
            if directory in checked:
                raise ConflictError(
                    f"two bundles would both be {directory}",
                    hint="name each bundle once, and give each build its own version",
                )
            checked[directory] = bundle
        return [checked[directory] for directory in sorted(checked)]

    def _fetched(self, locks: Locks, wheel_cache: Path) -> tuple[Wheel, ...]:
        return Wheelhouse(wheel_cache).wheels(
            locks.node + locks.bootstrap, pythons=self._pythons, status=self._progress.note
        )

    def _gathered(self, wheel_cache: Path) -> GpuWheels:
        gpu = gather(wheel_cache, self._locks, pythons=self._pythons, status=self._progress.note)
        for wheel in gpu.given:
            self._progress.note(f"{wheel.path.name} was given, with SHA-256 {wheel.sha256}")
        if not gpu.programs().has_tensorrt:
            self._progress.note("TensorRT's libraries were not given: GPU nodes will use CUDA")
        return gpu

    def _copy_wheels(self, wheels: Mapping[str, Wheel]) -> None:
        """Copy each wheel to its path on the media."""
        for path, wheel in wheels.items():
            check_file_size(path, wheel.size)
        total = sum(wheel.size for wheel in wheels.values())
        if not wheels:
            return
        with self._progress.bytes("writing the programs", total) as advance:
            for path, wheel in wheels.items():
                name = wheel.path.name
                entry = FileEntry(path=name, size=wheel.size, sha256=wheel.sha256)
                target = self._directory / path
                target.parent.mkdir(exist_ok=True)
                copy_verified(wheel.path.parent, entry, target, name=name, advance=advance)

    def _copy_bundles(self, bundles: Sequence[VerifiedBundle]) -> None:
        for bundle in bundles:
            directory = self._directory / describe(bundle).directory
            manifest = bundle.manifest
            title = f"writing {manifest.name} {manifest.version}"
            with self._progress.bytes(title, bundle.size) as advance:
                for entry in bundle.files:
                    target = directory / entry.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    name = bundle.prefix + entry.path
                    copy_verified(bundle.directory, entry, target, name=name, advance=advance)

    def _expect_room(
        self, wheels: Sequence[Wheel], pyz_bytes: bytes, bundles: Sequence[VerifiedBundle]
    ) -> None:
        """Ask the disk for everything at once. Raises CapacityError, before anything is copied."""
        sizes = [wheel.size for wheel in wheels]
        sizes += [entry.size for bundle in bundles for entry in bundle.files]
        sizes += [path.stat().st_size for path in self._documents().values()]
        needed = taken(self._directory, [*sizes, len(pyz_bytes), _ALLOWANCE])
        expect_room(self._directory, needed, "the media need")

    def _write_pyz(self, data: bytes) -> None:
        (self._directory / pyz.NAME).write_bytes(data)
        self.pyz_sha256 = hashlib.sha256(data).hexdigest()

    def _copy_documents(self) -> None:
        """What `_documents` names, and a README."""
        for name, path in self._documents().items():
            target = self._directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        text = readme(appliance.__version__)
        (self._directory / "README.txt").write_text(text, encoding="ascii")

    def _documents(self) -> dict[str, Path]:
        """The checkout's documentation, and every root for nodes that know an old one."""
        source = checkout()
        texts = {p.relative_to(source).as_posix(): p for p in (source / DOCS).rglob("*.md")}
        return texts | {f"metadata/{path.name}": path for path in self._keyring.roots()}

    def _release(self, wheels: Sequence[Wheel], extra: Sequence[Wheel]) -> Release:
        files = [*self._pinned(walk_files(self._directory)), *map(_extra_file, extra)]
        return Release(
            version=appliance.__version__,
            created=int(self._now.timestamp()),
            pythons=self._pythons,
            files=tuple(sorted(files, key=lambda file: file.path)),
            wheels=tuple(sorted(map(_release_wheel, wheels), key=lambda wheel: wheel.path)),
        )

    def _pinned(self, names: Iterable[str]) -> Iterable[ReleaseFile]:
        """What neither a bundle's signature nor the list of wheels pins."""
        for name in names:
            if not name.startswith((f"{WHEELS}/", f"{CUDA13}/", "bundles/")):
                size, sha256 = hash_regular(self._directory / name, name=name)
                yield ReleaseFile(path=name, size=size, sha256=sha256)


def _release_wheel(wheel: Wheel) -> ReleaseWheel:
    return ReleaseWheel(
        path=f"{WHEELS}/{wheel.path.name}",
        size=wheel.size,
        sha256=wheel.sha256,
        pythons=wheel.pythons,
    )


def _extra_file(wheel: Wheel) -> ReleaseFile:
    return ReleaseFile(path=target_path(wheel), size=wheel.size, sha256=wheel.sha256)


def _pin(own: Wheel) -> Pin:
    return Pin(own.project, appliance.__version__, "", frozenset({own.sha256}))
