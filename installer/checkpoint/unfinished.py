"""The directory in which a bundle grows, `.NAME.partial` beside it.

Owns the lock that keeps a second build of the same bundle out, and the key that says what an
unfinished build was made from and by: another key begins anew. Its weights are worth keeping after
a kill, a full disk or Ctrl-C, and after a refusal too, where the command can be put right; only
where the weights themselves are refused do they go.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import appliance
from appliance.errors import (
    ApplianceError,
    CheckpointError,
    ConflictError,
    LockedError,
    StorageError,
)
from appliance.fsops import fsync_dir, write_durable

_LOCK, _KEY, _JOURNAL, _BUNDLE, _SCRATCH = "lock", "key", "journal", "bundle", "scratch"
_LIBRARIES = ("ml-dtypes", "msgspec", "numpy", "onnx-ir", "onnxruntime")
"""What shapes the bytes of weights and graphs."""
_NOT_OF_THE_WEIGHTS = frozenset({"parity_failed", "parity_not_run", "draft_unfit"})
"""Refusals of a checkpoint that another --parity, another reference or another draft gets past."""
_GOES_ON = "what is done is kept, and the command goes on from there when it is put right"


class Unfinished:
    """One build's own directory; get it from `unfinished`.

    Attributes:
        bundle: grows into the bundle.
        journal: see journal.py.
        scratch: for files that are nobody's when the build ends.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bundle = directory / _BUNDLE
        self.journal = directory / _JOURNAL
        self.scratch = directory / _SCRATCH
        self._is_own = False
        """Whether what is in it was made from what this build is made from."""

    @property
    def has_weights(self) -> bool:
        """Whether there is anything to go on with."""
        return any(self.bundle.rglob("weights-*.bin"))

    def begin(self, key: str, keep: str) -> bool:
        """Go on with what the same key left in the folder `keep` of the bundle, and say so.

        Anything else is removed first.
        """
        path = self.directory / _KEY
        goes_on = path.is_file() and path.read_text("ascii", "replace") == key
        self._clear(() if not goes_on else (_KEY, _JOURNAL, _BUNDLE))
        if not goes_on:
            write_durable(path, key.encode("ascii"))
        self._is_own = True
        self.bundle.mkdir(exist_ok=True)
        _clear_but_weights(self.bundle, keep)
        self.scratch.mkdir()
        return goes_on

    def begin_anew(self) -> None:
        """Whatever was left is removed first."""
        self._clear(())
        self.bundle.mkdir()
        self.scratch.mkdir()

    def is_lost(self, refusal: ApplianceError) -> bool:
        """Whether nothing can go on from here after `refusal`."""
        if not self.has_weights:
            return True
        of_weights = isinstance(refusal, CheckpointError) and (
            refusal.code not in _NOT_OF_THE_WEIGHTS
        )
        return self._is_own and of_weights

    def finish(self, out: Path) -> None:
        """Put the bundle at its place. Raises ConflictError if something came there meanwhile."""
        _absent(out)
        self.bundle.rename(out)
        fsync_dir(out.parent)
        self.discard()

    def discard(self) -> None:
        """Leave nothing."""
        shutil.rmtree(self.directory)

    def _clear(self, keep: tuple[str, ...]) -> None:
        for path in self.directory.iterdir():
            if path.name in (_LOCK, *keep):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _clear_but_weights(bundle: Path, folder: str) -> None:
    """Leave the weight files in `folder`: everything else is made again, or not wanted any more."""
    for path in sorted(bundle.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.parent != bundle / folder or not path.match("weights-*.bin"):
            path.unlink()


@contextmanager
def unfinished(out: Path, *, goes_on: bool = True) -> Iterator[Unfinished]:
    """The unfinished bundle of `out`, for this process alone.

    Raises LockedError if another builds it, ConflictError if `out` exists, StorageError. A refusal
    leaves what the same command can go on from, and says so; without `goes_on` nothing is left, and
    what another command can go on from is a ConflictError.
    """
    try:
        _absent(out)
        directory = out.with_name(f".{out.name}.partial")
        with _locked(directory, out):
            _absent(out)  # another may just have finished
            build = Unfinished(directory)
            if not goes_on:
                _refuse_other_work(build)
            try:
                yield build
            except BaseException as error:
                _leave(build, error, goes_on=goes_on)
                raise
    except OSError as error:
        hint = "check the disk's free space and the permissions of the directories"
        then = "; the same command then goes on where it stopped"
        raise StorageError(
            f"the bundle cannot be written: {error.filename or out}: {error.strerror or error}",
            hint=hint + then * goes_on,
        ) from error


def _refuse_other_work(build: Unfinished) -> None:
    """Raise ConflictError if somebody may want to go on with what is there."""
    if build.has_weights:
        raise ConflictError(
            f"{build.directory} holds the unfinished build of a model",
            hint="name another directory with --out; to give that build up, remove it",
        )


def _leave(build: Unfinished, error: BaseException, *, goes_on: bool) -> None:
    """Remove what nothing can go on from after `error`; say of the rest that it is there."""
    if not isinstance(error, ApplianceError):
        if not goes_on:
            build.discard()
    elif not goes_on or build.is_lost(error):
        build.discard()
    else:
        error.hint = f"{error.hint}; {_GOES_ON}".removeprefix("; ")


def build_key(inputs: Mapping[str, str]) -> str:
    """SHA-256 over everything that shapes the bytes of a bundle's weights: inputs and builder."""
    words = dict(inputs) | {"release": appliance.__version__, "builder": _builder()}
    words |= {name: version(name) for name in _LIBRARIES}
    text = "\n".join(f"{name}={value}" for name, value in sorted(words.items()))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _builder() -> str:
    """SHA-256 over this package's own source: a release in the making has no version of its own."""
    digest, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _absent(out: Path) -> None:
    if out.exists():
        raise ConflictError(f"{out} exists", hint="name a new directory: bundles never change")


@contextmanager
def _locked(directory: Path, out: Path) -> Iterator[None]:
    fd = None
    while fd is None:
        directory.mkdir(parents=True, exist_ok=True)
        fd = _lock(directory / _LOCK, out)
    try:
        yield
    finally:
        os.close(fd)


def _lock(path: Path, out: Path) -> int | None:
    """A descriptor that holds the lock; None if the directory went away meanwhile, lock and all."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise LockedError(
            f"another process is building {out}",
            hint="wait for it to finish, or name another directory",
        ) from None
    if _is_still(fd, path):
        return fd
    os.close(fd)
    return None


def _is_still(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
