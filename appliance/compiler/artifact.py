"""Compiled artifacts on disk, one directory each: artifacts/<key>/.

Owns opening them. Refuses, before the runtime sees a byte, an artifact whose record this node
did not sign, or whose files are not exactly the recorded ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.compiler import record as records
from appliance.compiler.fingerprint import artifact_key, fingerprints, for_settings
from appliance.compiler.hardware import Gpu, read_gpu
from appliance.compiler.record import Provider, Record
from appliance.config import EngineSettings
from appliance.errors import DigestError, LayoutError, NotFoundError
from appliance.fsops import hash_regular, read_regular, walk_files
from appliance.trust.node_key import NodePublicKey

GRAPH_NAME = "model.onnx"
PREFILL_NAME = "prefill.onnx"
"""The second graph of a model with an 8-bit cache, over the same weights."""
ADAPTED_NAME = "adapted.onnx"
ADAPTED_PREFILL_NAME = "adapted-prefill.onnx"
"""The same with room for adapters, where the bundle has that."""
NATIVE_NAME = "native.onnx"
NATIVE_ADAPTED_NAME = "native-adapted.onnx"
"""The graphs of native operators, in place of all of these where this processor has them."""
NATIVE_HEAD_NAME = "native-head.onnx"
"""The head that predicts further tokens, if the bundle has one."""
WEIGHTS_NAME = "weights.bin"
VISION_NAME = "vision.onnx"
VISION_CUDA_NAME = "vision-cuda.onnx"
VISION_WEIGHTS_NAME = "vision-weights.bin"
DRAFT_PREFIX = "draft-"
"""Before the names of a draft model's graphs and weights, which are otherwise named as above."""

_AGAIN = "`appliance models compile` compiles it again"


def of_stage(name: str, stage: int) -> str:
    """What the file `name` is called of stage number `stage`, the first of which is 0."""
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{1 + stage}{dot}{suffix}" if stage else name


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified artifact."""

    directory: Path
    key: str
    record: Record

    @property
    def provider(self) -> Provider:
        """What it was compiled for: a session that takes another provider must not be used."""
        return self.record.provider


def open_artifact(
    artifacts: Path,
    bundle_digest: str,
    node_public_key: NodePublicKey,
    settings: EngineSettings | None = None,
) -> Artifact:
    """The artifact of this bundle for this machine and interpreter, every byte verified.

    `settings` are the engine's, its defaults if not given. The artifact is the one for the fastest
    provider that was compiled, for no more GPUs than there are. One that does not verify is an
    error, and no reason to look at a slower one. Raises NotFoundError if there is none,
    SignatureError, LayoutError or DigestError, each naming the file.
    """
    for provider, values in fingerprints().items():
        key = artifact_key(bundle_digest, for_settings(values, settings or EngineSettings()))
        if (artifacts / key).is_dir():
            found = open_named(artifacts / key, key, bundle_digest, node_public_key, provider)
            if has_its_gpus(found.record):
                return found
    raise _not_compiled()


def has_its_gpus(record: Record) -> bool:
    """Whether this machine has as many GPUs as the model was cut for.

    They may have become fewer; one that was cut for fewer than there are stays as it is.
    """
    if record.fit is None or record.fit.gpus == 1:
        return True
    gpu = read_gpu()
    return isinstance(gpu, Gpu) and len(gpu.numbers) >= record.fit.gpus


def open_named(
    directory: Path,
    key: str,
    bundle_digest: str,
    node: NodePublicKey,
    provider: Provider = "cpu",
    *,
    hashed: bool = True,
) -> Artifact:
    """The artifact `key` in `directory`; its files' sizes alone are looked at unless `hashed`.

    Raises as `open_artifact` does.
    """
    if not directory.is_dir():
        raise _not_compiled()
    record = read_record(directory, node)
    if (record.key, record.bundle, record.provider) != (key, bundle_digest, provider):
        at = f"{key}/{records.NAME}"
        raise LayoutError(f"{at} is the record of another artifact", path=at, hint=_AGAIN)
    _check_files(directory, key, record, hashed=hashed)
    return Artifact(directory, key, record)


def read_record(directory: Path, node: NodePublicKey) -> Record:
    """What the node says of the artifact in `directory`; its files are not looked at.

    Raises NotFoundError, SignatureError, LayoutError.
    """
    at = f"{directory.name}/{records.NAME}"
    data = read_regular(directory / records.NAME, limit=records.MAX_BYTES, name=at)
    return records.verify(data, node, path=at)


def _not_compiled() -> NotFoundError:
    return NotFoundError("the model is not compiled for this machine", hint=_AGAIN)


def _check_files(directory: Path, key: str, record: Record, *, hashed: bool) -> None:
    found = walk_files(directory, prefix=f"{key}/")
    found.pop(records.NAME, None)
    expected = {entry.path: entry.size for entry in record.files}
    odd = sorted(dict(found.items() ^ expected.items()))
    if odd:
        name = f"{key}/{odd[0]}"
        raise LayoutError(f"{name} is missing, extra or of another size", path=name, hint=_AGAIN)
    for entry in record.files if hashed else ():
        name = f"{key}/{entry.path}"
        if hash_regular(directory / entry.path, name=name) != (entry.size, entry.sha256):
            raise DigestError(f"{name} was altered after it was compiled", path=name, hint=_AGAIN)
