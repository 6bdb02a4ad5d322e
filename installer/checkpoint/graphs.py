"""Every graph of a bundle, over weights that are stored once.

Owns the order in which they are written: first the one with which the weights are stored, then
those that serve. Counts the weights before, and tries the graphs; which there are: graph_list.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from appliance.bundle.specs import DecoderSpec, FileEntry
from appliance.native import library
from installer.checkpoint import calibration
from installer.checkpoint.bundle_layout import (
    ADAPTED_GRAPH,
    ADAPTED_PREFILL_GRAPH,
    COMPACT_GRAPH,
    CUDA_GRAPH,
    DRAFT,
    GRAPH,
    NATIVE_ADAPTED_GRAPH,
    NATIVE_GRAPH,
    NATIVE_HEAD_GRAPH,
    OBSERVED,
    PREFILL_GRAPH,
    SHALLOW,
    TRT_GRAPH,
    VISION_CUDA_GRAPH,
    VISION_GRAPH,
    WEIGHTS,
)
from installer.checkpoint.graph import adapted
from installer.checkpoint.graph.attention import FloatSlots, HalfSlots
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.byte_slots import BytePrompt, ByteSlots, CacheScales, Observed
from installer.checkpoint.graph.compact import CompactBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.floats import FloatBuilder
from installer.checkpoint.graph.half import HalfBuilder
from installer.checkpoint.graph.half_reader import CompactReader, HalfReader
from installer.checkpoint.graph.native import (
    AdaptedNativeBuilder,
    NativeBuilder,
    NativeHead,
    NativeSlots,
)
from installer.checkpoint.graph.standard import StandardBuilder
from installer.checkpoint.graph.static_cache import StaticCache
from installer.checkpoint.graph_list import graphs_of
from installer.checkpoint.journal import Journal
from installer.checkpoint.packed.methods import treatment
from installer.checkpoint.plan import Plan
from installer.checkpoint.probe import probe, probe_tower
from installer.checkpoint.quantize import SCHEMES, Precision, Scheme
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.space import counted
from installer.checkpoint.unfinished import Unfinished
from installer.checkpoint.weights import WeightFiles
from installer.progress import Progress

_CALIBRATION_TOKENS = 2048
"""Of one prompt at most; all together have about 3,000."""


def _first_form(plan: Plan) -> Form | None:
    """The form of the graph that is written with the weights, before all others."""
    if plan.joined:
        return Observed
    return FloatSlots if plan.family.kind == "chat" else None


def _for_cuda(plan: Plan) -> Iterator[tuple[str, Form | None, type[GraphBuilder]]]:
    """Path, form and words of each graph for CUDA."""
    form: Form | None = HalfSlots
    half: type[GraphBuilder] = HalfBuilder
    compact: type[GraphBuilder] = CompactBuilder
    if plan.reads:
        form, half, compact = None, HalfReader, CompactReader
    elif plan.adapters:
        half, compact = adapted.AdaptedHalfBuilder, adapted.AdaptedCompactBuilder
    if plan.on_gpus:
        yield CUDA_GRAPH, form, half
    if plan.compact is not None:
        yield COMPACT_GRAPH, form, compact


def count_weights(plan: Plan) -> int:
    """Bytes of the weights to come.

    Raises CheckpointError for a tensor that is missing, misshapen or without a place.
    """
    checkpoint = Checkpoint(plan.checkpoint.directory)
    shape = plan.family.read(checkpoint)
    if plan.headless:
        shape = plan.shape
    forms: list[tuple[Form | None, type[GraphBuilder]]] = [(_first_form(plan), GraphBuilder)]
    forms += [(form, words) for _, form, words in _for_cuda(plan)]
    forms += [(StaticCache, StandardBuilder)] if plan.standard else []
    if plan.joined and not plan.on_gpus and not plan.drafts:  # what is behind the layers, too
        forms.append((FloatSlots, GraphBuilder))

    def build(files: WeightFiles) -> None:
        for form, words in forms:
            builder = words(checkpoint.tensors, files, SCHEMES[plan.precision])
            plan.family.build(builder, shape, *(() if form is None else (form,)))

    def build_tower(files: WeightFiles) -> None:
        if plan.family.tower is not None:
            builder = GraphBuilder(checkpoint.tensors, files, _tower_scheme(plan))
            plan.family.tower(builder, shape.tower)

    limit = plan.max_file_bytes
    total = counted(build, limit) + counted(build_tower, limit)
    if not plan.drafts:  # whose graphs for the processor alone use some
        checkpoint.tensors.finish_counting(plan.family.unused_tensors)
    return total


def write_graphs(plan: Plan, work: Unfinished, progress: Progress) -> Sequence[FileEntry]:
    """Write every graph; returns the weight files."""
    directory, weights = work.bundle, work.bundle / WEIGHTS
    weights.mkdir(parents=True, exist_ok=True)
    tensors = plan.checkpoint.tensors
    if plan.checkpoint.packing is not None:
        offered = plan.family.precisions
        progress.note(treatment(plan.checkpoint.packing, plan.precision, offered))
    with (
        Journal(work.journal, weights) as journal,
        WeightFiles(weights, limit=plan.max_file_bytes, journal=journal, sources=tensors) as files,
    ):
        writer = _GraphWriter(plan, files)
        first = work.scratch / OBSERVED if plan.joined else directory / GRAPH
        title = f"building the {plan.checkpoint.family} graph in {plan.precision}"
        with progress.bytes(title, tensors.size) as tensors.advance:
            files.restore(journal.kept)
            writer.write(first, _first_form(plan))
        form = _first_form(plan)
        if plan.joined:
            form = _write_joined(plan, writer, first, directory, progress)
        elif plan.adapters:
            writer.write(directory / ADAPTED_GRAPH, FloatSlots, adapted.AdaptedBuilder)
        for path, half, words in _for_cuda(plan):
            writer.write(directory / path, half, words)
        if plan.standard:
            writer.write(directory / TRT_GRAPH, StaticCache, StandardBuilder)
        if plan.vision is not None:
            progress.step("building the vision tower")
            _write_tower(plan, directory / VISION_GRAPH, directory / VISION_CUDA_GRAPH)
        if plan.gate is not None and plan.gate.reference is not None:
            files.sealed = True
            shallow = work.scratch / SHALLOW
            writer.write(shallow, form, shape=plan.gate.reference.shape)
            tower = directory / VISION_GRAPH if plan.vision is not None else None
            plan.gate.finish(shallow, weights, plan.precision, tower)
    tensors.finish(plan.family.unused_tensors)
    return [
        FileEntry(path=f"{WEIGHTS}/{name}", size=size, sha256=sha256)
        for name, (size, sha256) in files.entries.items()
    ]


def write_draft(plan: Plan, work: Unfinished, progress: Progress) -> None:
    """The graphs of a draft model, over weight files of their own."""
    directory = work.bundle / DRAFT
    weights = directory / WEIGHTS
    weights.mkdir(parents=True)
    tensors, observed = plan.checkpoint.tensors, work.scratch / f"{DRAFT}-{OBSERVED}"
    with WeightFiles(weights, limit=plan.max_file_bytes) as files:
        writer = _GraphWriter(plan, files)
        title = f"building the {plan.checkpoint.family} graph that drafts"
        with progress.bytes(title, tensors.size) as tensors.advance:
            writer.write(observed, Observed)
        _write_joined(plan, writer, observed, directory, progress)
    tensors.finish(plan.family.unused_tensors)


def _write_tower(plan: Plan, path: Path, cuda: Path) -> None:
    """The tower, with weight files of its own: 4 bits would cost it too much, and publishers of
    8-bit floats leave it plain."""
    assert plan.family.tower is not None
    path.parent.mkdir()
    with WeightFiles(path.parent, limit=plan.max_file_bytes) as files:
        for name, words in ((path, GraphBuilder), (cuda, FloatBuilder)):
            builder = words(plan.checkpoint.tensors, files, _tower_scheme(plan))
            plan.family.tower(builder, plan.shape.tower)
            files.flush()
            builder.save(name, name=f"{plan.checkpoint.family}.vision")


def _tower_scheme(plan: Plan) -> Scheme:
    instead: Mapping[Precision, Precision] = {"int4": "int8", "fp8": "fp16"}
    return SCHEMES[instead.get(plan.precision, plan.precision)]


class _GraphWriter:
    """Writes graphs of one checkpoint, whose weights are stored once."""

    def __init__(self, plan: Plan, files: WeightFiles) -> None:
        self._plan = plan
        self._files = files

    def write(
        self,
        path: Path,
        form: Form | None,
        words: type[GraphBuilder] = GraphBuilder,
        shape: Any = None,  # noqa: ANN401  # the family's own
    ) -> None:
        """Write the graph in `form`; `shape`, if it is not the plan's, has fewer layers."""
        plan = self._plan
        builder = words(plan.checkpoint.tensors, self._files, SCHEMES[plan.precision])
        plan.family.build(builder, shape or plan.shape, *(() if form is None else (form,)))
        self._save(builder, path)

    def write_head(self, path: Path, scales: CacheScales) -> None:
        """Write the graph of the head, whose cache has the last of `scales`."""
        plan = self._plan
        assert plan.family.head is not None
        builder = NativeBuilder(plan.checkpoint.tensors, self._files, SCHEMES[plan.precision])
        own = CacheScales(scales.layers[-1:])
        plan.family.head(builder, plan.head, partial(NativeHead, scales=own))
        self._save(builder, path)

    def _save(self, builder: GraphBuilder, path: Path) -> None:
        self._files.flush()
        path.parent.mkdir(exist_ok=True)
        builder.save(path, name=self._plan.checkpoint.family)


def _write_joined(
    plan: Plan, writer: _GraphWriter, observed: Path, directory: Path, progress: Progress
) -> Form:
    """With the scales that the observing graph finds, the two graphs that serve.

    Returns the form of the first.
    """
    prompts = _calibration_prompts(plan)
    assert isinstance(plan.spec, DecoderSpec)
    layers = plan.spec.layers + (plan.head is not None)
    with progress.count("calibrating the cache", sum(map(len, prompts)), "tokens") as advance:
        scales = calibration.calibrate(observed, directory / WEIGHTS, prompts, layers, advance)
    slots, prefill = partial(ByteSlots, scales=scales), partial(BytePrompt, scales=scales)
    writer.write(directory / GRAPH, slots)
    writer.write(directory / PREFILL_GRAPH, prefill)
    if plan.adapters:
        writer.write(directory / ADAPTED_GRAPH, slots, adapted.AdaptedBuilder)
        writer.write(directory / ADAPTED_PREFILL_GRAPH, prefill, adapted.AdaptedBuilder)
    if plan.native:
        native = partial(NativeSlots, scales=scales)
        writer.write(directory / NATIVE_GRAPH, native, NativeBuilder)
        if plan.adapters:
            writer.write(directory / NATIVE_ADAPTED_GRAPH, native, AdaptedNativeBuilder)
        if plan.head is not None:
            writer.write_head(directory / NATIVE_HEAD_GRAPH, scales)
    return slots


def _calibration_prompts(plan: Plan) -> list[Sequence[int]]:
    """Each text as a user would send it and as it is, then the breadth of the vocabulary."""
    assert plan.chat is not None, "only chat models have a cache"
    length = min(plan.shape.context, _CALIBRATION_TOKENS)
    texts = [plan.chat.prompt("\n\n".join(calibration.TEXTS))]
    texts += [plan.chat.prompt(text) for text in calibration.TEXTS] + list(calibration.TEXTS)
    prompts = [plan.tokenizer.encode(text)[:length] for text in texts]
    return [*(p for p in prompts if p), calibration.spread(plan.shape.vocab, length)]


def try_graphs(plan: Plan, directory: Path, progress: Progress) -> None:
    """Run every graph once."""
    for graph in graphs_of(plan):
        if graph.variant == "native" and not library.supported():
            progress.note("the graph of native operators is not tried: this processor lacks them")
            continue
        progress.step(f"trying the graph for {graph.variant}{' that drafts' * plan.drafts}")
        for path in (graph.path, *graph.others):
            probe(directory / path, directory / graph.weights_folder, plan.spec)
    if plan.head_spec is not None and library.supported():
        progress.step("trying the head that predicts further tokens")
        probe(directory / NATIVE_HEAD_GRAPH, directory / WEIGHTS, plan.head_spec.decoder)
    if plan.vision is not None:
        progress.step("trying the vision tower")
        for tower in (VISION_GRAPH, VISION_CUDA_GRAPH):
            probe_tower(directory / tower, plan.vision)
