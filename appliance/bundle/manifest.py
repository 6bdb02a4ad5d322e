"""The manifest of a model bundle, `bundle.json`: types and canonical bytes.

Owns the meaning of every field. Refuses unknown fields and wrong types. The SHA-256 of the
manifest's bytes is the bundle's digest, the identity by which everything else names a bundle.
The bytes are JSON with sorted keys, no spaces, UTF-8 (the subset of RFC 8785 that integers,
strings and shortest-form floats need).
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from appliance.bundle.consistency import bad, check
from appliance.bundle.files import MAX_MANIFEST_BYTES
from appliance.bundle.specs import (
    AdapterSpec,
    DecoderSpec,
    DraftSpec,
    EncoderSpec,
    FileEntry,
    Generation,
    Graph,
    HeadSpec,
    Parity,
    Prompting,
    RerankSpec,
    Spec,
    Strict,
    VisionSpec,
)


class Manifest(Strict, frozen=True):
    """Everything the node needs to know of a bundle, and nothing it must guess."""

    format: Literal["appliance-bundle/1"]
    name: str
    version: str
    kind: Literal["chat", "embedding", "rerank", "adapter"]
    family: str
    """`model_type` of the checkpoint: qwen3, bert, ..."""
    created: int
    """Unix seconds; SOURCE_DATE_EPOCH if the packager set it."""
    license: str
    checkpoint_sha256: str
    """Digest over the checkpoint's files that were read, in path order."""
    files: tuple[FileEntry, ...]
    """Every file but `bundle.json` and `model.sig`, sorted by path."""
    graphs: tuple[Graph, ...]
    tokenizer: str
    """Path of tokenizer.json; empty for an adapter, which has its base's."""
    decoder: DecoderSpec | None = None
    encoder: EncoderSpec | None = None
    generation: Generation | None = None
    prompting: Prompting | None = None
    vision: VisionSpec | msgspec.UnsetType = msgspec.UNSET
    """Left out if the model reads text only."""
    draft: DraftSpec | msgspec.UnsetType = msgspec.UNSET
    """Left out if no small model guesses for it."""
    head: HeadSpec | msgspec.UnsetType = msgspec.UNSET
    """Left out if it has none, or none that this processor's operators compute."""
    reranker: RerankSpec | msgspec.UnsetType = msgspec.UNSET
    parity: Parity | msgspec.UnsetType = msgspec.UNSET
    """Left out by releases that did not compare."""
    adapter: AdapterSpec | msgspec.UnsetType = msgspec.UNSET
    """Only of an adapter, which has no graphs and nothing else of a model."""

    @property
    def as_adapter(self) -> AdapterSpec | None:
        """What the bundle adds to another; None if it is a model."""
        return self.adapter if isinstance(self.adapter, AdapterSpec) else None

    @property
    def of_draft(self) -> Manifest | None:
        """What a manifest of the draft model alone would say of its graphs; None if there is none.

        For those who compute graphs. It is no bundle's and has no digest.
        """
        draft = self.draft
        if not isinstance(draft, DraftSpec):
            return None
        unset = msgspec.UNSET
        return msgspec.structs.replace(
            self, graphs=draft.graphs, decoder=draft.decoder, draft=unset, head=unset, parity=unset
        )

    @property
    def has_head(self) -> bool:
        """Whether a head of its own predicts further tokens."""
        return isinstance(self.head, HeadSpec)

    @property
    def spec(self) -> Spec:
        """What its graphs take and give. Only of models, not of adapters."""
        spec = self.reranker if isinstance(self.reranker, RerankSpec) else None
        spec_of_kind = {"chat": self.decoder, "embedding": self.encoder, "rerank": spec}.get(
            self.kind
        )
        assert spec_of_kind is not None, "the manifest was checked, and is no adapter's"
        return spec_of_kind

    @property
    def graph(self) -> Graph:
        """The graph for the CPU provider, which every model has."""
        return self.graphs[0]

    def variants(self, name: str) -> tuple[Graph, ...]:
        """The graphs written for this provider, the most exact first."""
        return tuple(graph for graph in self.graphs if graph.variant == name)

    def variant(self, name: str) -> Graph | None:
        """The most exact graph written for this provider, if the bundle has one."""
        return next(iter(self.variants(name)), None)


def encode(manifest: Manifest) -> bytes:
    """Canonical bytes of `manifest`."""
    return msgspec.json.encode(manifest, order="sorted")


def decode(data: bytes) -> Manifest:
    """Parse and check the bytes of a `bundle.json`. Raises LayoutError; never trusts a path."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise bad(f"it is {len(data)} bytes long, more than {MAX_MANIFEST_BYTES}")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad(str(error)) from None
    if encode(manifest) != data:
        raise bad("it is not in canonical form")
    check(manifest)
    return manifest


def digest(data: bytes) -> str:
    """The bundle's identity: SHA-256 of its manifest's bytes, lower-case hex."""
    return hashlib.sha256(data).hexdigest()
