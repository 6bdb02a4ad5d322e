"""A checkpoint becomes a signed bundle.

Owns the order of the steps and the bundle's layout. Everything that can refuse a checkpoint
without reading its weights does so first. The bundle appears at its place by one rename when it
is complete; a build that fails or is killed leaves nothing there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
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
from appliance.errors import CheckpointError, ConflictError, StorageError, UsageError
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
from installer.checkpoint.licence import Licence, find_licence
from installer.checkpoint.packed.methods import treatment
from installer.checkpoint.probe import probe, probe_tower
from installer.checkpoint.prompting import TEMPLATE_PATH, ChatSource, read_prompting
from installer.checkpoint.quantize import SCHEMES, Precision, Scheme
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.tokenizer import CheckpointTokenizer
from installer.checkpoint.weights import WeightFiles
from installer.progress import Advance, Progress
from installer.signing import BundleSigner

GRAPH = "graph/cpu/model.onnx"
PREFILL_GRAPH = "graph/cpu/prefill.onnx"
ADAPTED_GRAPH = "graph/cpu/adapted.onnx"
ADAPTED_PREFILL_GRAPH = "graph/cpu/adapted-prefill.onnx"
CUDA_GRAPH = "graph/cuda/model.onnx"
COMPACT_GRAPH = "graph/cuda/compact.onnx"
TRT_GRAPH = "graph/trt/model.onnx"
VISION_GRAPH = "graph/vision/model.onnx"
WEIGHTS = "graph/cpu"
TOKENIZER = "tokenizer/tokenizer.json"
LICENCE = "LICENSE"
MODEL_CARD = "MODEL_CARD.md"
README = "README.md"
_CALIBRATION_TOKENS = 2048
"""Of one prompt at most; all together have about 3,000."""


class _Silent:
    """Progress that nobody watches."""

    def step(self, title: str) -> None: ...

    def note(self, text: str) -> None: ...

    def bytes(self, title: str, total: int) -> AbstractContextManager[Advance]:
        return nullcontext(lambda _count: None)


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
    vision: VisionSpec | None
    adapters: bool = False
    """Whether the bundle has graphs with room for adapters."""

    @property
    def spec(self) -> Spec:
        spec: Spec = self.shape.spec()
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
) -> Manifest:
    """Build the bundle of `checkpoint` in the new directory `out` and sign it.

    Args:
        precision: of the weights; None takes the family's default.
        adapters: the bundle can be the base of adapters, for which it has graphs of its own.
        signer: None leaves the bundle unsigned, which no node accepts.
        created: Unix seconds; None takes SOURCE_DATE_EPOCH, else the clock.

    Raises CheckpointError naming what cannot be expressed, ConflictError if `out` exists,
    UsageError for a name or version that the manifest cannot hold, StorageError.
    """
    if out.exists():
        raise ConflictError(f"{out} exists", hint="name a new directory: bundles never change")
    if created is None:
        epoch = source_date_epoch()
        created = int(time.time()) if epoch is None else epoch
    progress = progress or _Silent()
    identity = _identity(name, version, created)
    plan = _plan(Checkpoint(checkpoint), precision, license_file, adapters=adapters)
    unfinished = out.with_name(f".{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        manifest = _write(plan, identity, unfinished, progress, max_file_bytes)
        if signer is not None:
            progress.step("signing the bundle")
            signer.sign(unfinished)
        unfinished.rename(out)
    except OSError as error:
        raise StorageError(
            f"the bundle cannot be written: {error}",
            hint="check the disk's free space and the permissions of the directories",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
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
    )


def _write(
    plan: Plan, identity: Identity, directory: Path, progress: Progress, max_file_bytes: int
) -> Manifest:
    _write_texts(plan, directory)
    _write_graphs(plan, directory, progress, max_file_bytes)
    for graph in _graphs(plan):
        probe(directory / graph.path, directory / graph.weights_folder, plan.spec)
        for path in graph.others:
            probe(directory / path, directory / graph.weights_folder, plan.spec)
    if plan.vision is not None:
        probe_tower(directory / VISION_GRAPH, plan.vision)
    with progress.bytes("hashing the checkpoint", plan.checkpoint.size()) as advance:
        origin = plan.checkpoint.digest(advance)
    files = _hash_files(directory, progress)
    subject = _subject(plan, identity, origin)
    (directory / bom.NAME).write_bytes(bom.write_bom(subject, files))
    files = tuple(sorted((*files, _entry(directory, bom.NAME)), key=lambda entry: entry.path))
    manifest = _manifest(plan, identity, origin, files)
    (directory / MANIFEST_NAME).write_bytes(encode(manifest))
    return decode(encode(manifest))


def _write_texts(plan: Plan, directory: Path) -> None:
    texts = {LICENCE: plan.licence.text, TOKENIZER: plan.tokenizer.json}
    if plan.chat is not None:
        texts[TEMPLATE_PATH] = plan.chat.template
    if plan.checkpoint.has(README) and (card := plan.checkpoint.text(README)):
        texts[MODEL_CARD] = card
    for name, text in texts.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8"))


def _write_graphs(plan: Plan, directory: Path, progress: Progress, max_file_bytes: int) -> None:
    path = directory / GRAPH
    path.parent.mkdir(parents=True)
    tensors = plan.checkpoint.tensors
    if plan.checkpoint.packing is not None:
        progress.note(treatment(plan.checkpoint.packing, plan.precision))
    title = f"building the {plan.checkpoint.family} graph in {plan.precision}"
    with (
        WeightFiles(path.parent, limit=max_file_bytes) as files,
        progress.bytes(title, tensors.size) as tensors.advance,
    ):
        writer = _GraphWriter(plan, files)
        if not plan.joined:
            writer.write(path, FloatSlots if plan.family.kind == "chat" else None)
            if plan.adapters:
                writer.write(directory / ADAPTED_GRAPH, FloatSlots, adapted.AdaptedBuilder)
        else:
            _write_joined(plan, writer, directory, progress)
        if plan.on_gpus:
            cuda = directory / CUDA_GRAPH
            cuda.parent.mkdir()
            writer.write(cuda, HalfSlots, HalfBuilder)
        if plan.compact:
            writer.write(directory / COMPACT_GRAPH, HalfSlots, CompactBuilder)
        if plan.standard:
            trt = directory / TRT_GRAPH
            trt.parent.mkdir()
            writer.write(trt, StaticCache, StandardBuilder)
        if plan.vision is not None:
            _write_tower(plan, directory / VISION_GRAPH, max_file_bytes)
    tensors.finish(plan.family.unused_tensors)


def _write_tower(plan: Plan, path: Path, max_file_bytes: int) -> None:
    """The tower, with weight files of its own: 4 bits would cost it too much."""
    assert plan.family.tower is not None
    path.parent.mkdir()
    scheme = SCHEMES["int8" if plan.precision == "int4" else plan.precision]
    with WeightFiles(path.parent, limit=max_file_bytes) as files:
        builder = GraphBuilder(plan.checkpoint.tensors, files, scheme)
        plan.family.tower(builder, plan.shape.tower)
        files.flush()
        builder.save(path, name=f"{plan.checkpoint.family}.vision")


class _GraphWriter:
    """Writes graphs of one checkpoint, whose weights are stored once."""

    def __init__(self, plan: Plan, files: WeightFiles) -> None:
        self._plan = plan
        self._files = files

    def write(
        self, path: Path, form: Form | None, words: type[GraphBuilder] = GraphBuilder
    ) -> None:
        plan = self._plan
        builder = words(plan.checkpoint.tensors, self._files, SCHEMES[plan.precision])
        plan.family.build(builder, plan.shape, *(() if form is None else (form,)))
        self._files.flush()
        builder.save(path, name=plan.checkpoint.family)


def _write_joined(plan: Plan, writer: _GraphWriter, directory: Path, progress: Progress) -> None:
    """The weights with a graph that observes; then, with the scales found, the two that serve."""
    observed = (directory / GRAPH).with_name("observed.onnx")
    writer.write(observed, Observed)
    progress.step("calibrating the cache")
    scales = calibration.calibrate(observed, _calibration_prompts(plan), plan.shape.layers)
    observed.unlink()
    decode, prefill = partial(ByteSlots, scales=scales), partial(BytePrompt, scales=scales)
    writer.write(directory / GRAPH, decode)
    writer.write(directory / PREFILL_GRAPH, prefill)
    if plan.adapters:
        writer.write(directory / ADAPTED_GRAPH, decode, adapted.AdaptedBuilder)
        writer.write(directory / ADAPTED_PREFILL_GRAPH, prefill, adapted.AdaptedBuilder)


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


def _hash_files(directory: Path, progress: Progress) -> tuple[FileEntry, ...]:
    sizes = walk_files(directory)
    with progress.bytes("hashing the bundle", sum(sizes.values())) as advance:
        return tuple(_entry(directory, name, advance) for name in sizes)


def _entry(directory: Path, name: str, advance: Advance | None = None) -> FileEntry:
    size, sha256 = hash_regular(directory / name, name=name, advance=advance)
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
        vision=plan.vision or msgspec.UNSET,
        reranker=spec if isinstance(spec, RerankSpec) else msgspec.UNSET,
    )
