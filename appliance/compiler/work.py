"""One bundle on its way to an artifact.

Owns the order for one provider: compile in the child, take its files over, hash, sign the record,
fsync, rename. The child parses and runs what came from outside, so its parent trusts only the
bytes that it hashes, and of what the child says only numbers that are within their bounds.
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

from appliance.bundle.footprint import least_bytes
from appliance.bundle.specs import FileEntry
from appliance.compiler import record as records
from appliance.compiler.artifact import (
    ADAPTED_NAME,
    ADAPTED_PREFILL_NAME,
    DRAFT_PREFIX,
    GRAPH_NAME,
    NATIVE_ADAPTED_NAME,
    NATIVE_HEAD_NAME,
    NATIVE_NAME,
    PREFILL_NAME,
    VISION_CUDA_NAME,
    VISION_NAME,
    VISION_WEIGHTS_NAME,
    WEIGHTS_NAME,
    Artifact,
    of_stage,
    open_named,
)
from appliance.compiler.child import compile_in_process, make_for_child, run_compiler
from appliance.compiler.cutting import MOST_STAGES
from appliance.compiler.fingerprint import artifact_key, for_settings
from appliance.compiler.ladder import Rung, choose, fit_on
from appliance.compiler.memory import GIB, refuse_if_taken
from appliance.compiler.profiles import LEAST_ENGINES, Sizes, plan, sizes_for
from appliance.compiler.record import Comparison, Fit, Outcome, Provider, Record, Refusal
from appliance.compiler.runtime import Runtime
from appliance.config import EngineSettings, Layout
from appliance.errors import (
    CapacityError,
    LayoutError,
    NotFoundError,
    UnsupportedError,
    VerificationError,
)
from appliance.fsops import fsync_dir, hash_regular, open_regular, write_durable
from appliance.model_store import StoredBundle
from appliance.trust.node_key import NodeKey

_INCOMING = ".incoming-"
_ENGINE_FILES = {".onnx", ".engine", ".profile", ".timing"}
_FILES = frozenset(
    {
        *(GRAPH_NAME, PREFILL_NAME, ADAPTED_NAME, ADAPTED_PREFILL_NAME, WEIGHTS_NAME),
        *(NATIVE_NAME, NATIVE_ADAPTED_NAME, NATIVE_HEAD_NAME),
        *(VISION_NAME, VISION_CUDA_NAME, VISION_WEIGHTS_NAME),
        *(of_stage(name, n) for name in (GRAPH_NAME, WEIGHTS_NAME) for n in range(1, MOST_STAGES)),
        *(DRAFT_PREFIX + name for name in (GRAPH_NAME, PREFILL_NAME, NATIVE_NAME, WEIGHTS_NAME)),
    }
)

Tell = Callable[[str], None]
Made = Callable[[StoredBundle, Record], None]


@dataclass(frozen=True, slots=True)
class ArtifactWork:
    """Makes the artifacts of `bundle`; whoever uses it holds the lock of the directory.

    Attributes:
        user: who the child runs as, when root starts it.
        settings: of the engine that will load the artifact.
        hashed: an artifact that is there already is read whole, not looked at by its sizes.
        tell: is told what takes long.
        made: is told each new record, before it is in its place.
    """

    layout: Layout
    bundle: StoredBundle
    node_key: NodeKey
    user: str | None
    settings: EngineSettings
    hashed: bool
    tell: Tell
    made: Made

    def climb(self, runtime: Runtime) -> Rung[Path]:
        """The artifact for the GPU, or the reasons why there is none."""

        def attempt(provider: Provider, reasons: tuple[Refusal, ...]) -> Path:
            return self._ensure(runtime, provider, reasons, self._compile_for_gpu)

        return choose(self.bundle.manifest, runtime.machine, attempt)

    def for_processor(self, runtime: Runtime, reasons: tuple[Refusal, ...]) -> Path:
        """The artifact for the processor. Raises what its compilation raises."""
        return self._ensure(runtime, "cpu", reasons, self._compile_for_processor)

    def _ensure(
        self,
        runtime: Runtime,
        provider: Provider,
        reasons: tuple[Refusal, ...],
        compile_it: Callable[[Runtime, Provider, Path], _Found],
    ) -> Path:
        """The verified artifact for `provider`: the one that is there, or a new one."""
        values = for_settings(runtime.machine.fingerprints[provider], self.settings)
        key = artifact_key(self.bundle.digest, values)
        target = self.layout.artifacts / key
        try:
            there = open_named(
                *(target, key, self.bundle.digest, self.node_key.public, provider),
                hashed=self.hashed,
            )
            return self._renew(there, reasons)
        except NotFoundError:
            self._say(provider)
        except VerificationError as error:
            self._say(provider, f" again: {error.message}")
        _discard_leftovers(self.layout.artifacts)
        incoming = self._incoming()
        try:
            found = compile_it(runtime, provider, incoming)
            record = Record(
                bundle=self.bundle.digest,
                key=key,
                fingerprint=values,
                files=_settle(incoming, provider),
                created=int(time.time()),
                provider=provider,
                reasons=reasons,
                compared=found.compared,
                fit=found.fit,
                tower=found.tower,
                unrecorded=found.unrecorded,
            )
            self._sign(record, incoming)
            self.made(self.bundle, record)
            _replace(incoming, target)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return target

    def _renew(self, there: Artifact, reasons: tuple[Refusal, ...]) -> Path:
        """The reasons are those of today: what spoke against a GPU may be another thing now."""
        if there.record.reasons != reasons:
            record = msgspec.structs.replace(there.record, reasons=reasons)
            self.made(self.bundle, record)
            self._sign(record, there.directory)
        return there.directory

    def _compile_for_processor(
        self, runtime: Runtime, _provider: Provider, incoming: Path
    ) -> _Found:
        self._refuse_without_room(least_bytes(self.bundle.manifest))
        compile_in_process(self.bundle.directory, incoming, python=runtime.python, user=self.user)
        return _Found(None, None)

    def _compile_for_gpu(self, runtime: Runtime, provider: Provider, incoming: Path) -> _Found:
        """Compile, and compare with what the processor makes of the golden prompt or texts."""
        gpu = runtime.machine.gpu
        assert gpu is not None, "the ladder has looked"
        fit = fit_on(provider, self.bundle.manifest, gpu)
        assert fit is not None, "the ladder has looked"
        refuse_if_taken(gpu, fit)
        self._refuse_without_room(self._least(provider, fit))
        if self.bundle.manifest.of_draft is not None:
            self.tell(f"the draft model of {self.bundle.name} is for processors: not used on a GPU")
        if self.bundle.manifest.has_head:
            self.tell(f"the head of {self.bundle.name} is for processors: not used on a GPU")
        with self._golden(runtime) as logits:
            make_for_child(incoming, self.user)
            arguments = ["--provider", provider, str(self.bundle.directory), str(incoming)]
            arguments.append(str(logits))
            if provider == "tensorrt":
                arguments.append(msgspec.json.encode(self._sizes(fit)).decode())
            else:
                arguments += [fit.precision, str(fit.gpus)]
            said = run_compiler(runtime.python, arguments, self.user)
        made = _made(said)
        return _Found(made.compared, fit, made.tower, made.unrecorded)

    def _refuse_without_room(self, least: int) -> None:
        """Raise CapacityError if the disk does not hold so many bytes more.

        A compilation that fills the disk stops whoever writes to it, the audit log among them.
        """
        free = shutil.disk_usage(self.layout.artifacts).free
        if free < least:
            raise CapacityError(
                f"compiling {self.bundle.name} takes {least / GIB:.1f} GiB or more; the disk that "
                f"holds {self.layout.artifacts} has {free / GIB:.1f} free",
                hint="free some space (`appliance models remove`), then `appliance models compile`",
                code="disk_full",
            )

    def _least(self, provider: Provider, fit: Fit) -> int:
        """Bytes of the disk that compiling takes at least."""
        if provider != "tensorrt":
            return fit.gpus * fit.weights
        # Each engine has the weights to itself.
        return fit.weights // LEAST_ENGINES * len(plan(self._sizes(fit)))

    def _sizes(self, fit: Fit) -> Sizes:
        spec = self.bundle.manifest.decoder
        assert spec is not None, "graphs for TensorRT are decoders"
        return sizes_for(spec, self.settings, fit)

    @contextmanager
    def _golden(self, runtime: Runtime) -> Iterator[Path]:
        """A directory with the processor's results."""
        directory = self._incoming()
        try:
            make_for_child(directory, self.user)
            arguments = ["--golden", str(self.bundle.directory), str(directory)]
            run_compiler(runtime.processor, arguments, self.user)
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _sign(self, record: Record, directory: Path) -> None:
        data = records.sign(record, self.node_key)
        write_durable(directory / records.NAME, data, mode=0o644)

    def _say(self, provider: Provider, more: str = "") -> None:
        where = "this machine" if provider == "cpu" else f"this machine's GPU ({provider})"
        self.tell(f"compiling {self.bundle.name} {self.bundle.version} for {where}{more}")

    def _incoming(self) -> Path:
        return self.layout.artifacts / f"{_INCOMING}{secrets.token_hex(8)}"


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found out while compiling for a GPU."""

    compared: Comparison | None
    fit: Fit | None
    tower: Refusal | None = None
    unrecorded: Refusal | None = None


def _made(said: bytes) -> Outcome:
    """What the child says that it made. Raises UnsupportedError for anything but a success."""
    try:
        made = msgspec.json.decode(said, type=Outcome)
    except msgspec.DecodeError as error:
        raise UnsupportedError(f"the compiler does not say what it compared: {error}") from None
    compared = made.compared
    if not 0 <= compared.error <= compared.bound:
        raise UnsupportedError(
            f"golden results differ from the processor's by {compared.error}, "
            f"more than {compared.bound}",
            code="golden_differs",
        )
    return made


def is_engine_file(name: str) -> bool:
    """Whether a file of this name is one that TensorRT's engines consist of."""
    return Path(name).suffix in _ENGINE_FILES


def _settle(directory: Path, provider: Provider) -> tuple[FileEntry, ...]:
    """Take the child's files over: make them the parent's, read-only and durable; hash them.

    The directory first: from then on a process that the child left behind can rename nothing.
    Raises LayoutError for anything but the plain files that a compilation makes.
    """
    root = os.geteuid() == 0
    if root:
        os.chown(directory, 0, 0)
    entries = []
    for name in sorted(path.name for path in directory.iterdir()):
        if name not in _FILES and not (provider == "tensorrt" and is_engine_file(name)):
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
