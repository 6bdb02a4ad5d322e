"""The wheels that media carry: downloaded once into a cache, checked by hash at every use.

Owns the cache directory and the building of the appliance's own wheel. Refuses source archives
and every file whose SHA-256 the lock does not name; a cached file that no longer matches is
thrown away and fetched again.
"""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

import installer
from appliance.errors import NotFoundError, UnavailableError, UsageError
from appliance.fsops import exclusive_lock, hash_regular
from installer.media.lockfile import PYTHONS, Pin, parse_lock, write_lock
from installer.media.release import check_file_size
from installer.packager_disk import TEMPORARY

GLIBC_MINOR = 36
"""The C library of Debian 12 is 2.36: the newest that wheels may ask for."""


_LARGE = ("nvidia-", "onnxruntime-gpu")
"""How the names of projects begin whose wheels have hundreds of megabytes."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel whose bytes are known; `pythons` are the interpreters that install it."""

    path: Path
    project: str
    size: int
    sha256: str
    pythons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Locks:
    """The locks of a checkout: what a node runs, pip itself, what a GPU node runs besides."""

    node: str
    bootstrap: str
    cuda13: str

    @classmethod
    def of_checkout(cls) -> Locks:
        """Read `requirements/`. Raises NotFoundError outside a checkout."""
        requirements = checkout() / "requirements"
        return cls(
            (requirements / "node.txt").read_text(encoding="ascii"),
            (requirements / "bootstrap.txt").read_text(encoding="ascii"),
            (requirements / "cuda13.txt").read_text(encoding="ascii"),
        )


def checkout() -> Path:
    """The source tree this program runs from. Raises NotFoundError if it was installed."""
    root = Path(installer.__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        raise NotFoundError(
            "media can only be built from a checkout of the appliance's source",
            hint="run this command from the checkout, set up with scripts/setup",
        )
    return root


def build_own_wheel(directory: Path) -> Wheel:
    """Build the appliance's own wheel into `directory`; the same tree gives the same bytes.

    Files carry the time SOURCE_DATE_EPOCH, or a constant. Raises UnavailableError.
    """
    needs = "the checkout is whole and set up (scripts/setup)"
    command = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory)
    _run(command, checkout(), needs=needs)
    (path,) = directory.glob("appliance-*.whl")
    size, sha256 = hash_regular(path, name=path.name)
    return Wheel(path, "appliance", size, sha256, PYTHONS)


class Wheelhouse:
    """A cache directory of wheels; several processes may use it at once."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def wheels(
        self,
        lock: str,
        *,
        pythons: Sequence[str] = PYTHONS,
        status: Callable[[str], None] = lambda _: None,
    ) -> tuple[Wheel, ...]:
        """Every wheel that `lock` needs on `pythons`, fetching what the cache lacks.

        `status` is told what is going on. Raises UnavailableError if pip fails, UsageError if
        the lock names something that has no wheel.
        """
        pins = parse_lock(lock)
        with self._locked():
            status("checking the cached wheels")
            known = self._checked(pins)
            chosen: dict[Path, list[str]] = {}
            for python in pythons:
                needed = [pin for pin in pins if pin.applies(python)]
                missing = [pin for pin in needed if _choose(pin, python, known) is None]
                for together in _portions(missing):
                    few = ", ".join(f"{pin.name} {pin.version}" for pin in together)
                    what = few if len(together) == 1 else f"{len(together)} wheels"
                    status(f"fetching {what} for CPython {python}")
                    self._fetch(together, python)
                if missing:
                    known = self._checked(pins)
                for pin in needed:
                    chosen.setdefault(_required(pin, python, known), []).append(python)
        return tuple(
            Wheel(path, *known[path], tuple(used_by)) for path, used_by in sorted(chosen.items())
        )

    def given(
        self, projects: Mapping[str, str], *, pythons: Sequence[str] = PYTHONS
    ) -> tuple[Wheel, ...]:
        """The wheels of `projects` (name -> version) that somebody has put into the directory.

        Nothing is fetched, and no lock names them: they are what they are. Raises UsageError for
        another version than the one asked for, UnsupportedError for a file that no media hold.
        """
        found = []
        for path in sorted(self._directory.glob("*.whl")):
            project = _project(path.name)
            if project not in projects:
                continue
            _, version, _, tags = parse_wheel_filename(path.name)
            if str(version) != projects[project]:
                raise UsageError(
                    f"{path.name} is not {project} {projects[project]}, which this release needs",
                    hint=f"take it out of {self._directory}, or get the version that is needed",
                )
            used_by = tuple(python for python in pythons if tags & _supported(python).keys())
            if used_by:
                check_file_size(path.name, path.stat().st_size)
                size, sha256 = hash_regular(path, name=path.name)
                found.append(Wheel(path, project, size, sha256, used_by))
        return tuple(found)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the cache; one that nobody can change, such as on a disc, needs no lock."""
        lock = ExitStack()
        try:
            lock.enter_context(exclusive_lock(self._directory / ".lock", wait=True))
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        with lock:
            yield

    def _checked(self, pins: Iterable[Pin]) -> dict[Path, tuple[str, int, str]]:
        """Path -> project, size, SHA-256 of each cached wheel whose hash a pin names."""
        allowed = {(pin.name, value) for pin in pins for value in pin.hashes}
        projects = {name for name, _ in allowed}
        known = {}
        for path in self._directory.glob("*.whl"):
            project = _project(path.name)
            if project not in projects:
                continue
            size, sha256 = hash_regular(path, name=path.name)
            if (project, sha256) in allowed:
                known[path] = (project, size, sha256)
        return known

    def _fetch(self, pins: Sequence[Pin], python: str) -> None:
        platforms = [word for tag in _platforms() for word in ("--platform", tag)]
        abi = f"cp{python.replace('.', '')}"
        with tempfile.TemporaryDirectory(dir=self._directory) as scratch:
            lock = Path(scratch, "lock.txt")
            lock.write_text(write_lock(pins), encoding="ascii")
            _run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                    *("--require-hashes", "--only-binary=:all:", "--no-cache-dir"),
                    *("--implementation", "cp", "--python-version", python),
                    *("--abi", abi, "--abi", "abi3", "--abi", "none", *platforms),
                    *("--dest", scratch, "--requirement", lock),
                ]
            )
            for path in Path(scratch).glob("*.whl"):
                path.replace(self._directory / path.name)


def _portions(missing: Sequence[Pin]) -> Iterator[Sequence[Pin]]:
    """What to fetch in one go: what is large by itself, so that it is there once it was fetched,
    and whoever waits sees what for."""
    if few := [pin for pin in missing if not pin.name.startswith(_LARGE)]:
        yield few
    yield from ([pin] for pin in missing if pin.name.startswith(_LARGE))


def _platforms() -> list[str]:
    newest_first = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC_MINOR, 4, -1)]
    return [*newest_first, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


@cache
def _supported(python: str) -> Mapping[Tag, int]:
    """Tag -> rank, best first, as pip on such a node would choose."""
    version = tuple(int(part) for part in python.split("."))
    abi = f"cp{python.replace('.', '')}"
    platforms = [*_platforms(), "linux_x86_64"]
    tags = [
        *cpython_tags(version, [abi, "abi3", "none"], platforms),
        *compatible_tags(version, abi, platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(tags)))}


def _choose(pin: Pin, python: str, known: dict[Path, tuple[str, int, str]]) -> Path | None:
    supported = _supported(python)
    best: tuple[int, Path] | None = None
    for path, (project, _, sha256) in known.items():
        if project != pin.name or sha256 not in pin.hashes:
            continue
        _, version, _, tags = parse_wheel_filename(path.name)
        ranks = [supported[tag] for tag in tags if tag in supported]
        if str(version) == pin.version and ranks:
            best = min(best or (min(ranks), path), (min(ranks), path))
    return best[1] if best else None


def _required(pin: Pin, python: str, known: dict[Path, tuple[str, int, str]]) -> Path:
    path = _choose(pin, python, known)
    if path is None:
        raise UsageError(
            f"{pin.name} {pin.version} has no wheel for CPython {python} on 64-bit x86 Linux",
            hint="lock another version with scripts/lock",
        )
    return path


def _project(filename: str) -> str:
    try:
        return parse_wheel_filename(filename)[0]
    except InvalidWheelFilename:
        return ""


def _run(
    command: Sequence[str | Path],
    directory: Path | None = None,
    *,
    needs: str = "the package index is reachable from this machine",
) -> None:
    """Run `command` in `directory`; `needs` is what to check if it fails."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise UnavailableError(
            f"{' '.join(str(word) for word in command[1:4])} failed: {reason[0]}",
            hint=f"check that {needs}, and that there is room for {TEMPORARY}",
        )
