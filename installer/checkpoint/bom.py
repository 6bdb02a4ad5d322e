"""The machine-learning bill of materials of a bundle, `mlbom.cdx.json`.

Owns the CycloneDX 1.6 document: the model with its licence, origin and model card, and every
file of the bundle with its digest. Deterministic: no random serial number, no clock.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6

import appliance
from appliance.bundle.specs import DraftSpec, FileEntry

NAME = "mlbom.cdx.json"

_TASKS = {
    "chat": "text-generation",
    "embedding": "feature-extraction",
    "rerank": "text-ranking",
    "adapter": "text-generation",
}
_OUTPUTS = {"chat": "text", "embedding": "vector", "rerank": "score", "adapter": "text"}


@dataclass(frozen=True, slots=True)
class Subject:
    """What the bill is about."""

    name: str
    version: str
    kind: str
    family: str
    architecture: str
    precision: str
    licence: str
    checkpoint_sha256: str
    created: int
    draft: DraftSpec | None = None
    """The small model that guesses for it, if there is one."""


def write_bom(subject: Subject, files: Sequence[FileEntry]) -> bytes:
    """The document's bytes."""
    model = Component(
        name=subject.name,
        version=subject.version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"{subject.name}@{subject.version}",
        licenses=[_licence(subject.licence)],
        properties=[
            Property(name="appliance:checkpoint:sha256", value=subject.checkpoint_sha256),
            Property(name="appliance:precision", value=subject.precision),
        ],
        components=[_file(entry) for entry in files]
        + ([] if subject.draft is None else [_draft(subject.draft)]),
    )
    builder = Component(
        name="appliance", version=appliance.__version__, type=ComponentType.APPLICATION
    )
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, _identity(subject)),
        metadata=BomMetaData(
            component=model, timestamp=datetime.fromtimestamp(subject.created, UTC)
        ),
    )
    bom.metadata.tools.components.add(builder)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library has no model cards yet (CycloneDX 1.5 and later do).
    document["metadata"]["component"]["modelCard"] = _model_card(subject)
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode("ascii")


def _identity(subject: Subject) -> str:
    """As long as nothing drafts, the words of releases that had no draft models."""
    told = repr(subject)
    return told.replace(", draft=None", "") if subject.draft is None else told


def _draft(draft: DraftSpec) -> Component:
    return Component(
        name=f"{draft.family}-draft",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="draft",
        licenses=[_licence(draft.license)],
        properties=[
            Property(name="appliance:checkpoint:sha256", value=draft.checkpoint_sha256),
            Property(name="appliance:precision", value=draft.graphs[0].precision),
        ],
    )


def _licence(identifier: str) -> DisjunctiveLicense:
    declared = LicenseAcknowledgement.DECLARED
    if identifier.startswith("LicenseRef-"):
        return DisjunctiveLicense(name=identifier, acknowledgement=declared)
    return DisjunctiveLicense(id=identifier, acknowledgement=declared)


def _file(entry: FileEntry) -> Component:
    return Component(
        name=entry.path,
        type=ComponentType.FILE,
        bom_ref=f"file:{entry.path}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry.sha256)],
    )


def _model_card(subject: Subject) -> dict[str, object]:
    return {
        "modelParameters": {
            "task": _TASKS[subject.kind],
            "architectureFamily": subject.family,
            "modelArchitecture": subject.architecture,
            "inputs": [{"format": "text"}],
            "outputs": [{"format": _OUTPUTS[subject.kind]}],
        }
    }
