"""The record of a compiled artifact: what was compiled, where, for what, and every resulting byte.

Owns the document's form. Signed by the node key (DSSE), so that an artifact that this node did
not make, or that changed since, never loads. What an artifact for the CPU does not need is left
out, so that records of older releases keep their bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from appliance.bundle.specs import FileEntry
from appliance.errors import LayoutError
from appliance.trust.node_key import NodeKey, NodePublicKey

NAME = "record.json"
PAYLOAD_TYPE = "application/vnd.appliance.artifact+json"
MAX_BYTES = 1024 * 1024

NOT_RECORDED, DRAFTS_NOT_RECORDED = "not_recorded", "drafts_not_recorded"
"""Codes of why steps are not replayed: any, or those of several tokens of a sequence."""

Provider = Literal["tensorrt", "cuda", "cpu"]
"""What computes: ONNX Runtime's provider for TensorRT, for CUDA, or for the processor."""


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why a faster provider was not taken.

    Attributes:
        provider: the one that was not taken.
        code: stable name of the reason, as "no_gpu".
        message: the reason for a person, one clause.
    """

    provider: Provider
    code: str
    message: str


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far the golden results are from those that the processor computes.

    They are the logits of the golden prompt's tokens, the golden texts' vectors, or their scores.

    Attributes:
        error: relative error, the largest of any token or text, or of all scores: |a - b| / |b|.
        bound: what was allowed.
    """

    error: float
    bound: float


class Fit(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """What of a GPU's memory a model takes, in bytes, as it was reckoned before compiling.

    Attributes:
        precision: what the weights are on the GPU.
        weights: all of them, or of the heaviest stage.
        slot: the cache of one sequence, or what the longest text takes while it is read; of one
            stage where there are several.
        memory: what the GPU has.
        gpus: how many GPUs the model is cut for, a stage for each.
    """

    precision: str
    weights: int
    slot: int
    memory: int
    gpus: int = 1


class Record(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """What the node vouches for.

    Attributes:
        bundle: digest of the bundle that was compiled.
        key: the artifact's key, which is its directory's name.
        fingerprint: of the machine and runtime it was compiled on.
        files: every file but the record, sorted by path.
        created: Unix seconds.
        provider: what computes it; sessions over it that take another are closed.
        reasons: for each faster provider, why it was not taken.
        compared: with the processor; None for the processor itself.
        tower: why the model's vision tower is the processor's though its decoder is not; or None.
        unrecorded: why its steps, or those with a draft, are run kernel by kernel on a GPU, not
            replayed; or None.
        fit: in the GPU's memory; None for the processor.
    """

    bundle: str
    key: str
    fingerprint: dict[str, str]
    files: tuple[FileEntry, ...]
    created: int
    provider: Provider = "cpu"
    reasons: tuple[Refusal, ...] = ()
    compared: Comparison | None = None
    fit: Fit | None = None
    tower: Refusal | None = None
    unrecorded: Refusal | None = None

    @property
    def replays(self) -> bool:
        """Whether steps are recorded on a GPU and replayed."""
        return self.unrecorded is None or self.unrecorded.code == DRAFTS_NOT_RECORDED

    @property
    def replays_drafts(self) -> bool:
        """Whether those of several tokens of a sequence are, too."""
        return self.unrecorded is None


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a compilation for a GPU says of itself; attributes as the record's."""

    compared: Comparison
    tower: Refusal | None = None
    unrecorded: Refusal | None = None


def compiled_as(record: Record) -> list[str]:
    """What computes the model, and why nothing faster does: clauses for a person."""
    taken = f"computed by {record.provider}"
    if record.compared is not None:
        taken += f", golden results within {record.compared.error:.4f} of the processor's"
    if record.fit is not None:
        taken += f", weights in {record.fit.precision}"
        if record.fit.gpus > 1:
            taken += f", its layers over {record.fit.gpus} GPUs"
    return [taken, *why_not_faster(record)]


def why_not_faster(record: Record) -> list[str]:
    """What of the model a faster provider could compute, and why it does not: clauses."""
    tower = [] if record.tower is None else [f"images seen by cpu: {record.tower.message}"]
    steps = [] if record.unrecorded is None else [f"not replayed: {record.unrecorded.message}"]
    return [*tower, *steps, *_explained(record.reasons)]


def _explained(reasons: Iterable[Refusal]) -> list[str]:
    """The reasons as clauses; providers that share one share its clause."""
    providers: dict[str, list[str]] = {}
    for refusal in reasons:
        providers.setdefault(refusal.message, []).append(refusal.provider)
    return [f"not by {' or '.join(names)}: {message}" for message, names in providers.items()]


def sign(record: Record, node_key: NodeKey) -> bytes:
    """The bytes of a `record.json`."""
    return node_key.sign(msgspec.json.encode(record, order="sorted"), PAYLOAD_TYPE)


def verify(data: bytes, node: NodePublicKey, *, path: str) -> Record:
    """The record that the node signed. Raises SignatureError, LayoutError."""
    payload = node.verify(data, PAYLOAD_TYPE, path=path)
    try:
        return msgspec.json.decode(payload, type=Record)
    except msgspec.DecodeError as error:
        raise LayoutError(
            f"{path} is not an artifact record: {error}",
            path=path,
            hint="another release wrote it: `appliance models compile` compiles it again",
        ) from None
