"""What a model family is to the builder, and the grades that it can be built in.

Owns the reasons for which a grade is not offered. Which families there are: known.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import CheckpointError
from installer.checkpoint.families.purpose import Kind
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.tower import TowerShape
from installer.checkpoint.quantize import Precision
from installer.checkpoint.reader import Checkpoint

DECODER: tuple[Precision, ...] = ("w8a8", "w4a8", "int4", "int8", "fp8", "fp16", "fp32")
# Of experts and latents: no native operators, without which w4a8 is int4.
SPARSE: tuple[Precision, ...] = ("w8a8", "int4", "int8", "fp16", "fp32")
PICTURES: tuple[Precision, ...] = ("int8", "int4", "fp8", "fp16", "fp32")
SPARSE_PICTURES = tuple(precision for precision in PICTURES if precision != "fp8")
_PICTURES_LACK: Mapping[Precision, str] = {
    "w8a8": "the two graphs over its 8-bit cache take words alone, and this model sees images",
    "w4a8": "the graphs over its 8-bit cache take words alone, and this model sees images",
}
_SPARSE_LACK: Mapping[Precision, str] = {
    "w4a8": "native operators do not compute its layers, and without them int4 is as fast",
    "fp8": "experts are stored as integers or in 16 bits and more",
}
# Of layers that attend, and that native operators do not compute.
ATTENDING: tuple[Precision, ...] = ("w8a8", "int4", "int8", "fp8", "fp16", "fp32")
# Most layers keep a running state in place of a cache of which 8 bits would be a quarter.
RECURRENT: tuple[Precision, ...] = ("int8", "int4", "w8a8", "fp8", "fp16", "fp32")
_RECURRENT_LACK: Mapping[Precision, str] = {
    "w4a8": "native operators compute layers that attend, and without them int4 is as fast",
}
_OUTSIDE = "it is computed by the processor alone, which would widen the weights"
# Layers whose cache holds running means as well, for processors alone.
COMPRESSED: tuple[Precision, ...] = ("int8", "int4", "fp32")
_UNEVEN_LACK: Mapping[Precision, str] = {
    "w8a8": "its slots hold what windows of tokens add up to, which 8 bits would lose",
    "w4a8": "native operators take the heads of all layers to be alike, and without them int4 is "
    "as fast",
}
# Of experts, computed by the processor alone, most of whose layers keep a running state.
BY_PROCESSOR: tuple[Precision, ...] = ("int8", "int4", "w8a8", "fp32")
# At 4 bits all-MiniLM-L6-v2 keeps a cosine of 0.94 with itself, at 8 bits 0.999.
ENCODER: tuple[Precision, ...] = ("int8", "fp32")
_READERS_LACK: Mapping[Precision, str] = {
    "int4": "its vectors or scores would lose too much",
    "w8a8": "it has no cache, and would be no faster than int8 and less exact",
    "w4a8": "it has no cache, and would lose too much",
    "fp8": "int8 takes as much and is more exact",
    "fp16": "the processor would widen the weights to 32 bits, and a GPU narrows those of fp32",
}


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture becomes a graph.

    Attributes:
        kind: what the bundle serves.
        precisions: what it can be built in, the default first.
        read: checkpoint -> the family's own shape, which has a `spec()` for the manifest.
        build: writes the graph for that shape; of a chat model, in the form that is given too.
        unused_tensors: tensors that may be present and have no place in the graph.
        tower: writes the graph of the vision tower, given its shape; None: it reads text only.
            Such a decoder takes what the tower makes; it has no graph for TensorRT.
        words: what builds its language model alone, in the grades whose graphs take words alone;
            None: they are refused.
        recurrent: whether layers keep a running state: nothing guesses for them.
        uneven: whether layers differ in their heads: no draft model guesses for them, nor they for
            another.
        by_processor: whether it has no graphs for a GPU.
        standard: whether standard operators alone can express it, as the graph for TensorRT must.
        head: writes the graph of the head that predicts further tokens, given its shape, which
            `head_of` tells; None: it has none, or what it has is not built.
        closer: another family in its place, for what config.json says of the layers; None: all that
            have the architecture are built alike.
        stand_in: what the reference library reads in place of config.json's own words, where it
            has the architecture under another name.
        restated: config.json in the words of the reference library, where publishers have others.
    """

    kind: Kind
    precisions: tuple[Precision, ...]
    read: Callable[[Checkpoint], Any]
    build: Callable[..., None]
    unused_tensors: re.Pattern[str]
    tower: Callable[[GraphBuilder, TowerShape], None] | None = None
    words: Family | None = None
    recurrent: bool = False
    uneven: bool = False
    by_processor: bool = False
    standard: bool = True
    head: Callable[..., None] | None = None
    head_of: Callable[[Any], Any] | None = None
    closer: Callable[[Checkpoint], Family] | None = None
    stand_in: Mapping[str, object] = field(default_factory=dict)
    restated: Callable[[Mapping[str, object]], dict[str, object]] = dict

    def choose(self, precision: Precision | None) -> Precision:
        """`precision`, or the default. Raises CheckpointError if the family does not bear it."""
        if precision is None:
            return self.precisions[0]
        if precision not in self.grades:
            raise CheckpointError(
                f"a model of this kind is not built in {precision}: {self._why_not(precision)}",
                hint=f"choose one of {', '.join(self.grades)}",
            )
        return precision

    @property
    def grades(self) -> tuple[Precision, ...]:
        """All that it can be built in, with those that leave out what sees."""
        further = () if self.words is None else self.words.precisions
        return tuple(dict.fromkeys((*self.precisions, *further)))

    def in_grade(self, precision: Precision) -> Family:
        """What builds it in one of its grades."""
        if precision in self.precisions:
            return self
        assert self.words is not None, "the grade was chosen"
        return self.words

    def _why_not(self, precision: Precision) -> str:
        if self.by_processor and precision in ("fp8", "fp16"):
            return _OUTSIDE
        lacks = _SPARSE_LACK if self.kind == "chat" else _READERS_LACK
        if self.recurrent:
            lacks = {**lacks, **_RECURRENT_LACK}
        if self.uneven:
            lacks = {**lacks, **_UNEVEN_LACK}
        return (lacks if self.tower is None else {**lacks, **_PICTURES_LACK})[precision]
