"""What is understood of a checkpoint before its weights are read.

Owns every refusal that config, tokenizer, template and licence give reason for, and which graphs
the bundle will have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from appliance.bundle.specs import DecoderSpec, Generation, HeadSpec, Spec, VisionSpec
from appliance.errors import CheckpointError
from installer.checkpoint.bundle_layout import (
    NATIVE_HEAD_GRAPH,
    VISION_CUDA_GRAPH,
    VISION_GRAPH,
)
from installer.checkpoint.families.family import Family
from installer.checkpoint.families.purpose import Kind, purpose_of
from installer.checkpoint.families.which_family import family_of, is_ambiguous
from installer.checkpoint.generation import read_generation
from installer.checkpoint.graph import adapted
from installer.checkpoint.graph.compact import has_compact_graph
from installer.checkpoint.graph.native import has_native_graph, has_native_head
from installer.checkpoint.graph.standard import has_standard_graph
from installer.checkpoint.image_processor import read_vision
from installer.checkpoint.licence import Licence, find_licence
from installer.checkpoint.parity import Mode, ParityGate
from installer.checkpoint.prompting import ChatSource, read_prompting
from installer.checkpoint.quantize import SCHEMES, Precision, Scheme
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.tokenizer import CheckpointTokenizer


@dataclass(frozen=True, slots=True)
class Plan:
    """What was understood of a checkpoint before its weights are read."""

    checkpoint: Checkpoint
    family: Family
    precision: Precision
    shape: Any
    licence: Licence
    tokenizer: CheckpointTokenizer
    chat: ChatSource | None
    generation: Generation | None
    max_file_bytes: int
    gate: ParityGate | None
    vision: VisionSpec | None
    adapters: bool = False
    """Whether the bundle has graphs with room for adapters."""
    supposed: bool = False
    """Whether nobody said what the model is for, which has several uses."""
    draft: Plan | None = None
    """Of a small model that guesses for it."""
    drafts: bool = False
    """Whether this is the small one, which lies in a folder of its own."""
    blind: bool = False
    """Whether what sees images is left out, which the grade has no graphs for."""
    headless: str = ""
    """Why the bundle has no head, if the checkpoint has one that could be built."""

    @property
    def spec(self) -> Spec:
        """What the manifest says of the model."""
        spec: Spec = self.shape.spec()
        if isinstance(spec, DecoderSpec) and self.joined:
            return msgspec.structs.replace(spec, cache="int8")
        return spec

    @property
    def joined(self) -> bool:
        """Whether the bundle has two graphs over an 8-bit cache."""
        return self.family.kind == "chat" and self._scheme.byte_cache

    @property
    def _scheme(self) -> Scheme:
        return SCHEMES[self.precision]

    @property
    def native(self) -> bool:
        """Whether the bundle has a graph of the appliance's own operators."""
        return (
            self.joined
            and self.vision is None
            and self.family.standard
            and has_native_graph(self._scheme, self.shape)
        )

    @property
    def head(self) -> Any:  # noqa: ANN401  # the family's own
        """The shape of the head that predicts further tokens; None if the bundle has none."""
        if self.family.head_of is None or not self.shape.predicts:
            return None
        return self.family.head_of(self.shape)

    @property
    def head_spec(self) -> HeadSpec | None:
        """What the manifest says of it."""
        if self.head is None:
            return None
        decoder = msgspec.structs.replace(self.head.spec(), cache="int8")
        return HeadSpec(graph=NATIVE_HEAD_GRAPH, hidden=self.shape.hidden, decoder=decoder)

    def without_head(self, reason: str) -> Plan:
        """The same, if it has a head, without it."""
        if self.head is None:
            return self
        return replace(self, shape=replace(self.shape, predicts=False), headless=reason)

    @property
    def compact(self) -> Literal["int8", "fp8"] | None:
        """What weights are in a second graph for CUDA, for half the memory; None: there is none."""
        if self.reads:
            return "int8" if self._scheme.layer_bits == 8 else None
        if not self.on_gpus or not has_compact_graph(self._scheme):
            return None
        return "fp8" if self._scheme.byte_floats else "int8"

    @property
    def standard(self) -> bool:
        """Whether the bundle has a graph for TensorRT, which has no room for adapters."""
        if self.reads or not self.on_gpus or self.adapters:
            return False
        return self.family.standard and has_standard_graph(self._scheme)

    @property
    def on_gpus(self) -> bool:
        """Whether the bundle has a graph for CUDA."""
        return not (self.drafts or self.family.by_processor)

    @property
    def reads(self) -> bool:
        """Whether it reads whole texts and generates nothing."""
        return self.family.kind != "chat"


def make_plan(
    checkpoint: Checkpoint,
    precision: Precision | None,
    license_file: Path | None,
    limit: int,
    parity: Mode | None,
    *,
    adapters: bool = False,
    kind: Kind | None = None,
) -> Plan:
    """Understand `checkpoint`; `limit` is of a file's bytes. Raises CheckpointError.

    `kind`: what the packager says that it is for.
    """
    whole = family_of(checkpoint, kind)
    if adapters and checkpoint.family not in adapted.FAMILIES:
        raise CheckpointError(
            f"config.json: a model of type {checkpoint.family!r} takes no adapters",
            hint=f"leave --adapters out; {', '.join(sorted(adapted.FAMILIES))} take them",
        )
    precision = whole.choose(precision)
    family = whole.in_grade(precision)
    shape = family.read(checkpoint)
    tokenizer = CheckpointTokenizer(checkpoint, shape.vocab)
    chat = read_prompting(checkpoint, tokenizer) if family.kind == "chat" else None
    vision = None
    if family.tower is not None:
        assert chat is not None
        vision = read_vision(checkpoint, shape, tokenizer, VISION_GRAPH, VISION_CUDA_GRAPH)
        chat.check_images(tokenizer.text_of(vision.image_token))
    plan = Plan(
        checkpoint=checkpoint,
        family=family,
        precision=precision,
        shape=shape,
        licence=find_licence(checkpoint, license_file),
        tokenizer=tokenizer,
        chat=chat,
        generation=read_generation(
            checkpoint, tokenizer, thinking=chat.thinking, end_ids=chat.end_ids
        )
        if chat
        else None,
        vision=vision,
        adapters=adapters,
        max_file_bytes=limit,
        gate=ParityGate(parity) if parity is not None else None,
        blind=whole.tower is not None and vision is None,
        supposed=kind is None and is_ambiguous(checkpoint) and purpose_of(checkpoint) is None,
    )
    if plan.native and has_native_head(SCHEMES[plan.precision], shape):
        return plan
    return plan.without_head(f"native operators alone compute it, and {_why_not_native(plan)}")


def _why_not_native(plan: Plan) -> str:
    if not plan.joined:
        return f"a bundle in {plan.precision} has no graph of them"
    return "this model's widths are beyond them"
