"""One release on the node: virtual environments of its own, complete or absent.

Owns `releases/<version>-<id>`, where the id is the hash of every wheel in it, so that a release
that runs is never rebuilt under its own feet. On a node that uses its GPU a second environment
stands beside the first, with the GPU's runtime: the two runtimes own the same import folder. Such
a release has another id, so a GPU that comes or goes is an update like any other. Wheels are
hashed while they are copied from the media, and pip (its own wheel, run as a zip: the node has
none) checks each again against the lock. Refuses indexes, dependency resolution, and a release
without its completion marker, which is written only after everything is on the disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.config import GPU_VENV, VENV, Layout, gpu_python
from appliance.errors import StorageError
from appliance.fsops import make_dirs, symlink_durable, write_durable
from appliance.model_store.blobs import storage_errors
from installer.media import Media
from installer.media.release import ReleaseWheel
from installer.media.target import TargetWheel
from installer.progress import Progress
from installer.room import Share, size

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_MARKER = ".complete"
_ID_DIGITS = 12
_LOCK, _GPU_LOCK = "requirements.txt", "requirements-gpu.txt"
_STEP_SECONDS = 1800
_UNPACKED_FACTOR = 4
"""Bytes on disk per byte of wheel: the files, their bytecode."""


@dataclass(frozen=True, slots=True)
class InstalledRelease:
    """One release's place on the node."""

    directory: Path

    @property
    def version(self) -> str:
        return self.directory.name.rpartition("-")[0]

    @property
    def python(self) -> Path:
        return self.directory / VENV / "bin/python"

    @property
    def gpu_python(self) -> Path:
        """The interpreter with the GPU's runtime; absent in a release for the processor."""
        return gpu_python(self.python)

    @property
    def command(self) -> Path:
        return self.directory / VENV / "bin/appliance"

    @property
    def id(self) -> str:
        """What tells releases of one version apart."""
        return self.directory.name.rpartition("-")[2]

    def is_complete(self) -> bool:
        """Whether it was staged to the end and its interpreter is still there."""
        return (self.directory / _MARKER).is_file() and self.python.exists()

    def uses_gpu(self) -> bool:
        """Whether it has programs for the GPU."""
        return self.gpu_python.exists()


def release_of(layout: Layout, media: Media, *, gpu: bool) -> InstalledRelease:
    """Where the release of these media is, or would be; `gpu`: the one for a node with a GPU.

    Raises NotFoundError.
    """
    identity = hashlib.sha256()
    for wheel in sorted(_wheels(media, gpu=gpu), key=lambda wheel: wheel.path):
        identity.update(f"{wheel.path} {wheel.sha256}\n".encode())
    name = f"{media.release.version}-{identity.hexdigest()[:_ID_DIGITS]}"
    return InstalledRelease(layout.releases / name)


def current_release(layout: Layout) -> InstalledRelease | None:
    """The release that `current` points at, if there is one."""
    try:
        return InstalledRelease(layout.releases / layout.current_release.readlink().name)
    except FileNotFoundError:
        return None


def make_current(layout: Layout, release: InstalledRelease) -> None:
    """Point `current` at `release`, atomically."""
    symlink_durable(layout.current_release, f"releases/{release.directory.name}")


def space_needed(layout: Layout, media: Media, *, gpu: bool) -> tuple[Share, ...]:
    """What staging will use at its height: copies of the wheels, and what is in them."""
    if release_of(layout, media, gpu=gpu).is_complete():
        return ()
    copied = unpacked = sum(wheel.size for wheel in media.wheels_for(PYTHON))
    unpacked *= _UNPACKED_FACTOR * (2 if gpu else 1)
    if gpu:
        copied += sum(wheel.size for wheel in _gpu_wheels(media))
        unpacked += sum(wheel.unpacked for wheel in _gpu_wheels(media))
    return (
        Share(layout.releases, "the programs", unpacked),
        Share(layout.state, "copies of the programs", copied),
    )


def stage(
    media: Media, layout: Layout, progress: Progress, *, gpu: bool, lock: int
) -> InstalledRelease:
    """Build the release unless it is complete.

    What it starts keeps the node's `lock`: where this process is killed alone, the next one waits
    for what goes on writing, before it removes that.
    Raises NotFoundError, DigestError or LayoutError naming a wheel, CapacityError, StorageError.
    """
    release = release_of(layout, media, gpu=gpu)
    if release.is_complete():
        return release
    work = layout.install_state / "staging"
    for leftover in (release.directory, work):
        if leftover.exists():
            shutil.rmtree(leftover)
    with storage_errors(work):
        make_dirs(work / "wheels")
        make_dirs(release.directory, mode=0o755)
        _copy(media, work, progress, gpu=gpu)
    pip = Path(media.pip_wheel.path).name
    progress.step("installing the programs")
    _install(release.directory / VENV, work, pip, _LOCK, held=lock)
    if gpu:
        unpacked = sum(wheel.unpacked for wheel in _gpu_wheels(media))
        progress.step(f"installing the programs for the GPU, {size(unpacked)}: takes some minutes")
        _install(release.directory / GPU_VENV, work, pip, _GPU_LOCK, held=lock)
    os.sync()
    write_durable(release.directory / _MARKER, b"", mode=0o644)
    shutil.rmtree(work)
    return release


def remove_others(layout: Layout, keep: Iterable[InstalledRelease]) -> None:
    """Delete every release that is not in `keep`."""
    kept = {release.directory for release in keep}
    for directory in layout.releases.iterdir():
        if directory not in kept:
            shutil.rmtree(directory)


def _wheels(media: Media, *, gpu: bool) -> tuple[ReleaseWheel, ...]:
    """Everything that the release is made from on this interpreter."""
    return (*media.wheels_for(PYTHON), *(_gpu_wheels(media) if gpu else ()))


def _gpu_wheels(media: Media) -> tuple[TargetWheel, ...]:
    assert media.cuda13 is not None, "what the media lack is not asked for"
    return media.cuda13.wheels_for(PYTHON)


def _copy(media: Media, work: Path, progress: Progress, *, gpu: bool) -> None:
    wheels = {wheel.path: wheel for wheel in (media.pip_wheel, *_wheels(media, gpu=gpu))}
    total = sum(wheel.size for wheel in wheels.values())
    with progress.bytes("copying and checking the programs", total) as advance:
        for path, wheel in wheels.items():
            media.copy(wheel, work / "wheels" / Path(path).name, advance)
    (work / _LOCK).write_bytes(media.requirements())
    if gpu:
        (work / _GPU_LOCK).write_bytes(media.gpu_requirements())


def _install(venv: Path, work: Path, pip: str, lock: str, *, held: int) -> None:
    """Make the virtual environment `venv` from the wheels in `work` that `lock` names."""
    python = str(venv / "bin/python")
    _run([sys.executable, "-I", "-m", "venv", "--without-pip", str(venv)], work, held)
    _run(
        [
            *(python, "-I", str(work / "wheels" / pip / "pip"), "install"),
            *("--no-index", "--no-deps", "--require-hashes", "--only-binary", ":all:"),
            *("--find-links", str(work / "wheels"), "--requirement", str(work / lock)),
            *("--no-compile", "--no-cache-dir", "--disable-pip-version-check", "--no-input"),
            *("--quiet", "--root-user-action", "ignore"),
        ],
        work,
        held,
    )
    _run([python, "-I", "-m", "compileall", "-q", "-j", "0", str(venv / "lib")], work, held)


def _run(command: Sequence[str], work: Path, held: int) -> None:
    """Run a step without the caller's environment and without /tmp; it keeps `held` open."""
    environment = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": str(work),
        "TMPDIR": str(work),
        "PIP_CONFIG_FILE": os.devnull,
    }
    done = subprocess.run(
        command,
        env=environment,
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_STEP_SECONDS,
        umask=0o022,
        pass_fds=(held,),
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise StorageError(
            f"the programs could not be installed: {said[-1] if said else 'no message'}",
            hint="check free space and file system of the node, then run the command again",
        )
