"""Compilation in a process of its own, and the artifact's way to its place.

Owns the order: climb the ladder, and for the rung that is taken hash, sign the record, fsync,
rename. The child parses and runs what came from outside, so its parent trusts only the bytes that
it hashes, and of what the child says only numbers that are within their bounds.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.bundle.manifest import FileEntry, Manifest
from appliance.compiler import record as records
from appliance.compiler.artifact import (
    GRAPH_NAME,
    PREFILL_NAME,
    WEIGHTS_NAME,
    Artifact,
    open_named,
)
from appliance.compiler.child import make_for_child, run_compiler
from appliance.compiler.fingerprint import artifact_key
from appliance.compiler.ladder import choose
from appliance.compiler.memory import candidates, choose_precision
from appliance.compiler.record import Comparison, Fit, Provider, Record, Refusal
from appliance.compiler.runtime import Runtime, choose_runtime, release_python
from appliance.config import Layout
from appliance.errors import LayoutError, NotFoundError, UnsupportedError, VerificationError
from appliance.fsops import (
    exclusive_lock,
    fsync_dir,
    hash_regular,
    make_dirs,
    open_regular,
    write_durable,
)
from appliance.model_store import StoredBundle
from appliance.trust.node_key import NodeKey

_INCOMING = ".incoming-"
_LOCK = ".lock"
_PREPACKED_FACTOR = 2.5
"""Artifact bytes for each byte of weights; 2.0 to 2.4 measured (decision 0024)."""
_FILES = frozenset({GRAPH_NAME, PREFILL_NAME, WEIGHTS_NAME})

Tell = Callable[[str], None]


def disk_bytes(manifest: Manifest) -> int:
    """About how many bytes the artifact of a bundle takes, whatever it is compiled for."""
    parent = Path(manifest.graph.path).parent
    weights = sum(entry.size for entry in manifest.files if Path(entry.path).parent == parent)
    return int(weights * _PREPACKED_FACTOR)


def ensure_artifact(
    layout: Layout,
    bundle: StoredBundle,
    node_key: NodeKey,
    *,
    user: str | None = None,
    python: Path | None = None,
    runtime: Runtime | None = None,
    progress: Tell | None = None,
    made: Callable[[Record], None] | None = None,
) -> Path:
    """The directory of the verified artifact of `bundle`, compiled now unless it is there.

    `python` is the interpreter of the release that will load it, the current one if not given;
    `runtime` the one that was chosen for it already. `made` is called with the record of what is
    new, before it is in its place. Safe to repeat and to kill at any moment. An artifact that no
    longer verifies is replaced. Raises what the last rung of the ladder raised; nothing is left
    behind then.
    """
    chosen = runtime or choose_runtime(python or release_python(layout))
    make_dirs(layout.artifacts, mode=0o755)
    with exclusive_lock(layout.artifacts / _LOCK, wait=True):
        work = _Work(layout, bundle, node_key, user, chosen, progress or _silent)
        rung = choose(bundle.manifest, chosen.machine, work.compile)
        return work.settle(rung.provider, rung.made, rung.reasons, made or _silent)


@dataclass(frozen=True, slots=True)
class _New:
    """What a child left in `incoming`, not yet looked at."""

    incoming: Path
    compared: Comparison | None
    fit: Fit | None


@dataclass(frozen=True, slots=True)
class _Work:
    """One bundle on its way to an artifact, under the lock."""

    layout: Layout
    bundle: StoredBundle
    node_key: NodeKey
    user: str | None
    runtime: Runtime
    tell: Tell

    def compile(self, provider: Provider) -> Artifact | _New:
        """An attempt at one rung: the artifact that is there already, or a new one."""
        try:
            return open_named(
                self._target(provider),
                self._key(provider),
                self.bundle.digest,
                self.node_key.public,
                provider,
            )
        except NotFoundError:
            self._say(provider, "")
        except VerificationError as error:
            self._say(provider, f" again: {error.message}")
        _discard_leftovers(self.layout.artifacts)
        incoming = self._incoming()
        try:
            if provider == "cpu":
                compile_in_process(
                    self.bundle.directory, incoming, python=self.runtime.python, user=self.user
                )
                return _New(incoming, None, None)
            return self._compile_for_gpu(provider, incoming)
        except BaseException:
            shutil.rmtree(incoming, ignore_errors=True)
            raise

    def settle(
        self,
        provider: Provider,
        found: Artifact | _New,
        reasons: tuple[Refusal, ...],
        made: Callable[[Record], None],
    ) -> Path:
        """Put what was made into its place, with its record; or bring the old one's up to date."""
        if isinstance(found, Artifact):
            return self._renew(found, reasons, made)
        try:
            record = Record(
                bundle=self.bundle.digest,
                key=self._key(provider),
                fingerprint=self.runtime.machine.fingerprints[provider],
                files=_settle(found.incoming),
                created=int(time.time()),
                provider=provider,
                reasons=reasons,
                compared=found.compared,
                fit=found.fit,
            )
            self._sign(record, found.incoming)
            made(record)
            _replace(found.incoming, self._target(provider))
        finally:
            shutil.rmtree(found.incoming, ignore_errors=True)
        return self._target(provider)

    def _renew(
        self, found: Artifact, reasons: tuple[Refusal, ...], made: Callable[[Record], None]
    ) -> Path:
        """The reasons are those of today: a GPU may have been added whose driver is too old."""
        if found.record.reasons != reasons:
            record = msgspec.structs.replace(found.record, reasons=reasons)
            made(record)
            self._sign(record, found.directory)
        return found.directory

    def _compile_for_gpu(self, provider: Provider, incoming: Path) -> _New:
        """Compile beside the processor's logits of the golden prompt."""
        gpu = self.runtime.machine.gpu
        assert gpu is not None, "the ladder has looked"
        fit = choose_precision(candidates(self.bundle.manifest, gpu.memory_bytes))
        with self._golden() as logits:
            make_for_child(incoming, self.user)
            arguments = ["--provider", provider, str(self.bundle.directory), str(incoming)]
            said = run_compiler(self.runtime.python, [*arguments, str(logits)], self.user)
        return _New(incoming, _comparison(said), fit)

    @contextmanager
    def _golden(self) -> Iterator[Path]:
        """A directory with the processor's logits."""
        directory = self._incoming()
        try:
            make_for_child(directory, self.user)
            arguments = ["--golden", str(self.bundle.directory), str(directory)]
            run_compiler(self.runtime.processor, arguments, self.user)
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _sign(self, record: Record, directory: Path) -> None:
        data = records.sign(record, self.node_key)
        write_durable(directory / records.NAME, data, mode=0o644)

    def _say(self, provider: Provider, more: str) -> None:
        where = "for this machine" if provider == "cpu" else f"for this machine's GPU ({provider})"
        self.tell(f"compiling {self.bundle.name} {self.bundle.version} {where}{more}")

    def _key(self, provider: Provider) -> str:
        return artifact_key(self.bundle.digest, self.runtime.machine.fingerprints[provider])

    def _target(self, provider: Provider) -> Path:
        return self.layout.artifacts / self._key(provider)

    def _incoming(self) -> Path:
        return self.layout.artifacts / f"{_INCOMING}{secrets.token_hex(8)}"


def compile_in_process(
    bundle_dir: Path, out_dir: Path, *, python: Path, user: str | None = None
) -> None:
    """Run `python -m appliance.compiler BUNDLE_DIR OUT_DIR`; creates `out_dir`.

    As root, `user` names who the child runs as. Raises the error that the child reports, or
    UnsupportedError if it died.
    """
    make_for_child(out_dir, user)
    run_compiler(python, [str(bundle_dir), str(out_dir)], user)


def _comparison(said: bytes) -> Comparison:
    """What the child says of its comparison. Raises UnsupportedError for anything but a success."""
    try:
        compared = msgspec.json.decode(said, type=Comparison)
    except msgspec.DecodeError as error:
        raise UnsupportedError(f"the compiler does not say what it compared: {error}") from None
    if not 0 <= compared.error <= compared.bound:
        raise UnsupportedError(
            f"golden logits differ from the processor's by {compared.error}, "
            f"more than {compared.bound}",
            code="golden_differs",
        )
    return compared


def _settle(directory: Path) -> tuple[FileEntry, ...]:
    """Take the child's files over: make them the parent's, read-only and durable; hash them.

    The directory first: from then on a process that the child left behind can rename nothing.
    Raises LayoutError for anything but the plain files that a compilation makes.
    """
    root = os.geteuid() == 0
    if root:
        os.chown(directory, 0, 0)
    entries = []
    for name in sorted(path.name for path in directory.iterdir()):
        if name not in _FILES:
            raise LayoutError(f"the compiler left {name!r} behind", path=name)
        fd = open_regular(directory / name, name=name)
        try:
            if root:
                os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o444)
            os.fsync(fd)
        finally:
            os.close(fd)
        size, sha256 = hash_regular(directory / name, name=name)
        entries.append(FileEntry(path=name, size=size, sha256=sha256))
    return tuple(entries)


def _replace(incoming: Path, target: Path) -> None:
    fsync_dir(incoming)
    if target.exists():
        # An engine that still maps the old files keeps them until it lets go.
        target.rename(target.with_name(f"{_INCOMING}{secrets.token_hex(8)}"))
    incoming.rename(target)
    fsync_dir(target.parent)
    _discard_leftovers(target.parent)


def _discard_leftovers(artifacts: Path) -> None:
    for path in artifacts.glob(f"{_INCOMING}*"):
        shutil.rmtree(path, ignore_errors=True)


def _silent(_said: object) -> None: ...
