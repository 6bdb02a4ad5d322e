"""A checkpoint becomes a signed bundle.

Owns the order of the steps and the bundle's layout. Everything that can refuse a checkpoint
without reading its weights does so first. The bundle appears at its place by one rename when it
is complete. A build that is killed, or stopped by Ctrl-C or a full disk, leaves its parts beside
that place, and the same build started again goes on from them; one that is refused leaves nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from appliance.bundle.manifest import (
    FORMAT,
    MANIFEST_NAME,
    MAX_FILE_BYTES,
    Adapted,
    DecoderSpec,
    EncoderSpec,
    FileEntry,
    Generation,
    Graph,
    Manifest,
    RerankSpec,
    Spec,
    VisionSpec,
    decode,
    encode,
    is_name,
)
from appliance.config import source_date_epoch
from appliance.errors import CheckpointError, UsageError
from appliance.fsops import hash_regular, walk_files
from installer.checkpoint import bom, calibration
from installer.checkpoint.generation import read_generation
from installer.checkpoint.graph import adapted
from installer.checkpoint.graph.attention import (
    BytePrompt,
    ByteSlots,
    FloatSlots,
    HalfSlots,
    Observed,
)
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.compact import CompactBuilder, has_compact_graph
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.families import Family, family_of
from installer.checkpoint.graph.half import HalfBuilder
from installer.checkpoint.graph.standard import StandardBuilder, has_standard_graph
from installer.checkpoint.graph.static_cache import StaticCache
from installer.checkpoint.image_processor import read_vision
from installer.checkpoint.journal import Journal
from installer.checkpoint.licence import Licence, find_licence
from installer.checkpoint.packed.methods import treatment
from installer.checkpoint.parity import Mode, ParityGate, Subject
from installer.checkpoint.probe import probe, probe_tower
from installer.checkpoint.prompting import TEMPLATE_PATH, ChatSource, read_prompting
from installer.checkpoint.quantize import SCHEMES, Precision, Scheme
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.space import check_space, counted
from installer.checkpoint.tokenizer import CheckpointTokenizer
from installer.checkpoint.unfinished import Unfinished, build_key, unfinished
from installer.checkpoint.weights import WeightFiles
from installer.progress import NoProgress, Progress
from installer.signing import BundleSigner

GRAPH = "graph/cpu/model.onnx"
PREFILL_GRAPH = "graph/cpu/prefill.onnx"
ADAPTED_GRAPH = "graph/cpu/adapted.onnx"
ADAPTED_PREFILL_GRAPH = "graph/cpu/adapted-prefill.onnx"
CUDA_GRAPH = "graph/cuda/model.onnx"
COMPACT_GRAPH = "graph/cuda/compact.onnx"
TRT_GRAPH = "graph/trt/model.onnx"
OBSERVED = "observed.onnx"
SHALLOW = "shallow.onnx"
VISION_GRAPH = "graph/vision/model.onnx"
WEIGHTS = "graph/cpu"
TOKENIZER = "tokenizer/tokenizer.json"
LICENCE = "LICENSE"
MODEL_CARD = "MODEL_CARD.md"
README = "README.md"
_CALIBRATION_TOKENS = 2048
"""Of one prompt at most; all together have about 3,000."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the packager says of a bundle."""

    name: str
    version: str
    created: int


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

    @property
    def spec(self) -> Spec:
        return self.spec_of(self.shape)

    def spec_of(self, shape: Any) -> Spec:  # noqa: ANN401  # the family's own
        """What the manifest says of a model of this shape."""
        spec: Spec = shape.spec()
        if isinstance(spec, DecoderSpec) and self.joined:
            return msgspec.structs.replace(spec, cache="int8")
        return spec

    @property
    def joined(self) -> bool:
        """Whether the bundle has two graphs over an 8-bit cache."""
        return self.family.kind == "chat" and self._scheme.integer_products

    @property
    def _scheme(self) -> Scheme:
        return SCHEMES[self.precision]

    @property
    def compact(self) -> bool:
        """Whether the bundle has a second graph for CUDA, for half the memory."""
        return self.on_gpus and has_compact_graph(self._scheme)

    @property
    def standard(self) -> bool:
        """Whether the bundle has a graph for TensorRT."""
        return self.on_gpus and self.family.standard and has_standard_graph(self._scheme)

    @property
    def on_gpus(self) -> bool:
        """Whether the bundle has a graph for CUDA."""
        return self.family.kind == "chat" and self.vision is None


def build_bundle(
    checkpoint: Path,
    out: Path,
    *,
    name: str,
    version: str,
    precision: Precision | None = None,
    license_file: Path | None = None,
    adapters: bool = False,
    signer: BundleSigner | None,
    progress: Progress | None = None,
    created: int | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    parity: Mode | None = None,
) -> Manifest:
    """Build the bundle of `checkpoint` in the new directory `out` and sign it.

    Args:
        precision: of the weights; None takes the family's default.
        adapters: the bundle can be the base of adapters, for which it has graphs of its own.
        signer: None leaves the bundle unsigned, which no node accepts.
        created: Unix seconds; None takes SOURCE_DATE_EPOCH, else the clock.
        parity: whether the first layers are compared with the reference implementation; None says
            nothing of it in the manifest.

    Raises CheckpointError naming what cannot be expressed or what differs, ConflictError if `out`
    exists, LockedError if another process builds it, UsageError for a name or version that the
    manifest cannot hold, CapacityError if the disk has no room, StorageError.
    """
    if created is None:
        epoch = source_date_epoch()
        created = int(time.time()) if epoch is None else epoch
    progress = progress or NoProgress()
    identity = _identity(name, version, created)
    plan = _plan(
        *(Checkpoint(checkpoint), precision, license_file, max_file_bytes, parity),
        adapters=adapters,
    )
    with unfinished(out) as work:
        manifest = _build(plan, identity, work, progress)
        if signer is not None:
            progress.step("signing the bundle")
            signer.sign(work.bundle)
        work.finish(out)
    return manifest


def _identity(name: str, version: str, created: int) -> Identity:
    for word, value in (("name", name), ("version", version)):
        if not is_name(value):
            raise UsageError(
                f"{value!r} cannot be the bundle's {word}",
                hint="use 1 to 64 of the characters a-z 0-9 . _ -",
            )
    return Identity(name, version, created)


def _plan(
    checkpoint: Checkpoint,
    precision: Precision | None,
    license_file: Path | None,
    limit: int,
    parity: Mode | None,
    *,
    adapters: bool = False,
) -> Plan:
    family = family_of(checkpoint)
    if adapters and checkpoint.family not in adapted.FAMILIES:
        raise CheckpointError(
            f"config.json: a model of type {checkpoint.family!r} takes no adapters",
            hint=f"leave --adapters out; {', '.join(sorted(adapted.FAMILIES))} take them",
        )
    shape = family.read(checkpoint)
    tokenizer = CheckpointTokenizer(checkpoint, shape.vocab)
    chat = read_prompting(checkpoint, tokenizer) if family.kind == "chat" else None
    vision = None
    if family.tower is not None:
        assert chat is not None
        vision = read_vision(checkpoint, shape, tokenizer, VISION_GRAPH)
        chat.check_images(tokenizer.text_of(vision.image_token))
    return Plan(
        checkpoint=checkpoint,
        family=family,
        precision=family.choose(precision),
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
    )


def _build(plan: Plan, identity: Identity, work: Unfinished, progress: Progress) -> Manifest:
    """Everything of the bundle but its signature."""
    texts = _texts(plan)
    weights = _count_weights(plan)
    plan.checkpoint.include_weights()
    with progress.bytes("hashing the checkpoint", plan.checkpoint.size()) as advance:
        origin = plan.checkpoint.digest(advance)
    if work.begin(_key(plan, origin)):
        progress.note("going on with the build that was stopped")
    check_space(work.bundle, weights)
    if plan.gate is not None:
        plan.gate.begin(_parity_subject(plan), work.scratch, progress)
    entries = _write_graphs(plan, work, progress)
    _write_texts(texts, work.bundle)
    _probe(plan, work.bundle, progress)
    plan.checkpoint.refuse_changes()
    files = _hash_files(work.bundle, entries)
    subject = _subject(plan, identity, origin)
    (work.bundle / bom.NAME).write_bytes(bom.write_bom(subject, files))
    files = tuple(sorted((*files, _entry(work.bundle, bom.NAME)), key=lambda entry: entry.path))
    manifest = _manifest(plan, identity, origin, files)
    (work.bundle / MANIFEST_NAME).write_bytes(encode(manifest))
    return decode(encode(manifest))


def _key(plan: Plan, origin: str) -> str:
    return build_key(
        {
            "checkpoint": origin,
            "precision": plan.precision,
            "max_file_bytes": str(plan.max_file_bytes),
            "adapters": str(plan.adapters),
        }
    )


def _texts(plan: Plan) -> dict[str, str]:
    """Path in the bundle -> text. All of them are read before the checkpoint is hashed."""
    texts = {LICENCE: plan.licence.text, TOKENIZER: plan.tokenizer.json}
    if plan.chat is not None:
        texts[TEMPLATE_PATH] = plan.chat.template
    if plan.checkpoint.has(README) and (card := plan.checkpoint.text(README)):
        texts[MODEL_CARD] = card
    return texts


def _write_texts(texts: Mapping[str, str], directory: Path) -> None:
    for name, text in texts.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8"))


def _parity_subject(plan: Plan) -> Subject:
    return Subject(
        checkpoint=plan.checkpoint,
        family=plan.family,
        precision=plan.precision,
        tokenizer=plan.tokenizer,
        shape=plan.shape,
        form=FloatSlots if plan.family.kind == "chat" else None,
    )


def _first_form(plan: Plan) -> Form | None:
    """The form of the graph that is written with the weights, before all others."""
    if plan.joined:
        return Observed
    return FloatSlots if plan.family.kind == "chat" else None


def _count_weights(plan: Plan) -> int:
    """Bytes of the weights to come. Raises CheckpointError for what is missing or misshapen."""
    checkpoint = Checkpoint(plan.checkpoint.directory)
    shape = plan.family.read(checkpoint)
    forms: list[tuple[Form | None, type[GraphBuilder]]] = [(_first_form(plan), GraphBuilder)]
    forms += [(HalfSlots, HalfBuilder)] if plan.on_gpus else []
    forms += [(HalfSlots, CompactBuilder)] if plan.compact else []
    forms += [(StaticCache, StandardBuilder)] if plan.standard else []

    def build(files: WeightFiles) -> None:
        for form, words in forms:
            builder = words(checkpoint.tensors, files, SCHEMES[plan.precision])
            plan.family.build(builder, shape, *(() if form is None else (form,)))

    def build_tower(files: WeightFiles) -> None:
        if plan.family.tower is not None:
            builder = GraphBuilder(checkpoint.tensors, files, _tower_scheme(plan))
            plan.family.tower(builder, shape.tower)

    limit = plan.max_file_bytes
    return counted(build, limit) + counted(build_tower, limit)


def _write_graphs(plan: Plan, work: Unfinished, progress: Progress) -> Sequence[FileEntry]:
    """Write every graph; returns the weight files."""
    directory, weights = work.bundle, work.bundle / WEIGHTS
    weights.mkdir(parents=True, exist_ok=True)
    tensors = plan.checkpoint.tensors
    if plan.checkpoint.packing is not None:
        progress.note(treatment(plan.checkpoint.packing, plan.precision))
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
        if plan.on_gpus:
            writer.write(directory / CUDA_GRAPH, HalfSlots, HalfBuilder)
        if plan.compact:
            writer.write(directory / COMPACT_GRAPH, HalfSlots, CompactBuilder)
        if plan.standard:
            writer.write(directory / TRT_GRAPH, StaticCache, StandardBuilder)
        if plan.gate is not None and plan.gate.reference is not None:
            files.sealed = True
            shape, shallow = plan.gate.reference.shape, work.scratch / SHALLOW
            writer.write(shallow, form, shape=shape)
            plan.gate.finish(shallow, weights, plan.precision, plan.spec_of(shape))
        if plan.vision is not None:
            progress.step("building the vision tower")
            _write_tower(plan, directory / VISION_GRAPH)
    tensors.finish(plan.family.unused_tensors)
    return [
        FileEntry(path=f"{WEIGHTS}/{name}", size=size, sha256=sha256)
        for name, (size, sha256) in files.entries.items()
    ]


def _write_tower(plan: Plan, path: Path) -> None:
    """The tower, with weight files of its own: 4 bits would cost it too much."""
    assert plan.family.tower is not None
    shutil.rmtree(path.parent, ignore_errors=True)  # what a build that was stopped left
    path.parent.mkdir()
    with WeightFiles(path.parent, limit=plan.max_file_bytes) as files:
        builder = GraphBuilder(plan.checkpoint.tensors, files, _tower_scheme(plan))
        plan.family.tower(builder, plan.shape.tower)
        files.flush()
        builder.save(path, name=f"{plan.checkpoint.family}.vision")


def _tower_scheme(plan: Plan) -> Scheme:
    return SCHEMES["int8" if plan.precision == "int4" else plan.precision]


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
        self._files.flush()
        path.parent.mkdir(exist_ok=True)
        builder.save(path, name=plan.checkpoint.family)


def _write_joined(
    plan: Plan, writer: _GraphWriter, observed: Path, directory: Path, progress: Progress
) -> Form:
    """With the scales that the observing graph finds, the two graphs that serve.

    Returns the form of the first.
    """
    prompts = _calibration_prompts(plan)
    with progress.count("calibrating the cache", sum(map(len, prompts)), "tokens") as advance:
        scales = calibration.calibrate(
            observed, directory / WEIGHTS, prompts, plan.shape.layers, advance
        )
    slots, prefill = partial(ByteSlots, scales=scales), partial(BytePrompt, scales=scales)
    writer.write(directory / GRAPH, slots)
    writer.write(directory / PREFILL_GRAPH, prefill)
    if plan.adapters:
        writer.write(directory / ADAPTED_GRAPH, slots, adapted.AdaptedBuilder)
        writer.write(directory / ADAPTED_PREFILL_GRAPH, prefill, adapted.AdaptedBuilder)
    return slots


def _calibration_prompts(plan: Plan) -> list[Sequence[int]]:
    """Each text as a user would send it and as it is, then the breadth of the vocabulary."""
    assert plan.chat is not None, "only chat models have a cache"
    length = min(plan.shape.context, _CALIBRATION_TOKENS)
    texts = [plan.chat.prompt("\n\n".join(calibration.TEXTS))]
    texts += [plan.chat.prompt(text) for text in calibration.TEXTS] + list(calibration.TEXTS)
    prompts = [plan.tokenizer.encode(text)[:length] for text in texts]
    return [*(p for p in prompts if p), calibration.spread(plan.shape.vocab, length)]


def _graphs(plan: Plan) -> tuple[Graph, ...]:
    """The graphs that the plan's bundle has."""
    cpu = Graph(
        variant="cpu",
        path=GRAPH,
        precision=plan.precision,
        prefill=PREFILL_GRAPH if plan.joined else msgspec.UNSET,
        adapted=_adapted(plan),
    )
    if not plan.on_gpus:
        return (cpu,)
    graphs = [cpu, Graph(variant="cuda", path=CUDA_GRAPH, precision="fp16", weights=WEIGHTS)]
    if plan.compact:
        graphs.append(Graph(variant="cuda", path=COMPACT_GRAPH, precision="int8", weights=WEIGHTS))
    if plan.standard:
        graphs.append(Graph(variant="trt", path=TRT_GRAPH, precision="fp16", weights=WEIGHTS))
    return tuple(graphs)


def _adapted(plan: Plan) -> Adapted | msgspec.UnsetType:
    """The graphs for adapters, if the plan's bundle has them."""
    if not plan.adapters:
        return msgspec.UNSET
    return Adapted(
        path=ADAPTED_GRAPH,
        targets=adapted.targets(plan.shape),
        prefill=ADAPTED_PREFILL_GRAPH if plan.joined else msgspec.UNSET,
    )


def _probe(plan: Plan, directory: Path, progress: Progress) -> None:
    """Run every graph once."""
    for graph in _graphs(plan):
        progress.step(f"trying the graph for {graph.variant}")
        for path in (graph.path, *graph.others):
            probe(directory / path, directory / graph.weights_folder, plan.spec)
    if plan.vision is not None:
        progress.step("trying the vision tower")
        probe_tower(directory / VISION_GRAPH, plan.vision)


def _hash_files(directory: Path, known: Sequence[FileEntry]) -> tuple[FileEntry, ...]:
    """Every file; the weights were hashed while they were written."""
    entries = {entry.path: entry for entry in known}
    return tuple(
        entries[name] if name in entries else _entry(directory, name)
        for name in walk_files(directory)
    )


def _entry(directory: Path, name: str) -> FileEntry:
    size, sha256 = hash_regular(directory / name, name=name)
    return FileEntry(path=name, size=size, sha256=sha256)


def _subject(plan: Plan, identity: Identity, origin: str) -> bom.Subject:
    return bom.Subject(
        name=identity.name,
        version=identity.version,
        created=identity.created,
        kind=plan.family.kind,
        family=plan.checkpoint.family,
        architecture=plan.checkpoint.architecture,
        precision=plan.precision,
        licence=plan.licence.identifier,
        checkpoint_sha256=origin,
    )


def _manifest(
    plan: Plan, identity: Identity, origin: str, files: tuple[FileEntry, ...]
) -> Manifest:
    spec = plan.spec
    return Manifest(
        format=FORMAT,
        name=identity.name,
        version=identity.version,
        created=identity.created,
        kind=plan.family.kind,
        family=plan.checkpoint.family,
        license=plan.licence.identifier,
        checkpoint_sha256=origin,
        files=files,
        graphs=_graphs(plan),
        tokenizer=TOKENIZER,
        decoder=spec if isinstance(spec, DecoderSpec) else None,
        encoder=spec if isinstance(spec, EncoderSpec) else None,
        generation=plan.generation,
        prompting=plan.chat.prompting if plan.chat is not None else None,
        parity=plan.gate.result if plan.gate is not None else msgspec.UNSET,
        vision=plan.vision or msgspec.UNSET,
        reranker=spec if isinstance(spec, RerankSpec) else msgspec.UNSET,
    )
