"""A checkpoint becomes a signed bundle.

Owns the order of the steps. Everything that can refuse a checkpoint
without reading its weights does so first. The bundle appears at its place by one rename when it
is complete. A build that is killed, or stopped by Ctrl-C or a full disk, leaves its parts beside
that place, and the same build started again goes on from them; so does one that was refused for
anything but its weights, when it is put right.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.bundle.files import FORMAT, MANIFEST_NAME, MAX_FILE_BYTES, is_name
from appliance.bundle.manifest import Manifest, decode, encode
from appliance.bundle.specs import DecoderSpec, DraftSpec, EncoderSpec, FileEntry, RerankSpec
from appliance.config import source_date_epoch
from appliance.errors import UsageError
from appliance.fsops import hash_regular, walk_files
from installer.checkpoint import bom, licence
from installer.checkpoint.ahead import share_heap
from installer.checkpoint.bundle_layout import (
    DRAFT,
    LICENCE,
    MODEL_CARD,
    README,
    TOKENIZER,
    WEIGHTS,
)
from installer.checkpoint.draft import draft_spec, refusing_draft, with_draft
from installer.checkpoint.families.purpose import Kind
from installer.checkpoint.graph.attention import FloatSlots
from installer.checkpoint.graph_list import graphs_of
from installer.checkpoint.graphs import count_weights, try_graphs, write_draft, write_graphs
from installer.checkpoint.parity import Mode, Subject
from installer.checkpoint.plan import Plan, make_plan
from installer.checkpoint.prompting import TEMPLATE_PATH
from installer.checkpoint.quantize import Precision
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.space import check_space
from installer.checkpoint.unfinished import Unfinished, build_key, unfinished
from installer.progress import NoProgress, Progress
from installer.signing import BundleSigner


@dataclass(frozen=True, slots=True)
class Identity:
    """What the packager says of a bundle."""

    name: str
    version: str
    created: int


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
    kind: Kind | None = None,
    draft: Path | None = None,
    draft_license_file: Path | None = None,
) -> Manifest:
    """Build the bundle of `checkpoint` in the new directory `out` and sign it.

    Args:
        precision: of the weights; None takes the family's default.
        adapters: the bundle can be the base of adapters, for which it has graphs of its own.
        signer: None leaves the bundle unsigned, which no node accepts.
        created: Unix seconds; None takes SOURCE_DATE_EPOCH, else the clock.
        parity: whether the first layers are compared with the reference implementation; None says
            nothing of it in the manifest.
        kind: what the model is for, where its files do not say it.
        draft: checkpoint of a small model with the same tokenizer, which guesses for this one;
            `draft_license_file` has its licence's text, if it has none itself.

    Raises CheckpointError naming what cannot be expressed or what differs, ConflictError if `out`
    exists, LockedError if another process builds it, UsageError for a name or version that the
    manifest cannot hold, CapacityError if the disk has no room, StorageError.
    """
    if created is None:
        epoch = source_date_epoch()
        created = int(time.time()) if epoch is None else epoch
    progress = progress or NoProgress()
    share_heap()
    identity = _identity(name, version, created)
    plan = make_plan(
        *(Checkpoint(checkpoint), precision, license_file, max_file_bytes, parity),
        adapters=adapters,
        kind=kind,
    )
    if draft is not None:
        plan = with_draft(plan, draft, draft_license_file)
    if plan.supposed:
        progress.note(
            f"no file says what this {plan.checkpoint.family} checkpoint is for: it becomes a "
            f"{plan.family.kind} model; if that is wrong, say --kind"
        )
    if plan.chat is not None and plan.chat.written:
        progress.note(
            "the checkpoint has no chat template; it gets the one that this release has for its "
            "publisher's encoding"
        )
    if plan.blind:
        progress.note(
            f"what sees images is left out: the graphs of {plan.precision} take words alone; "
            f"without --precision the model sees"
        )
    if plan.headless:
        progress.note(f"its head that predicts further tokens is left out: {plan.headless}")
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


def _build(plan: Plan, identity: Identity, work: Unfinished, progress: Progress) -> Manifest:
    """Everything of the bundle but its signature."""
    texts, plans = _texts(plan), [plan, plan.draft] if plan.draft else [plan]
    if plan.gate is not None:
        plan.gate.expect()
    weights = count_weights(plan)
    if plan.draft is not None:
        with refusing_draft():
            weights += count_weights(plan.draft)
    # Before the checkpoint is hashed, which may take minutes.
    check_space(work.directory, weights)
    size = sum(each.checkpoint.size() for each in plans)
    with progress.bytes("hashing the checkpoint", size) as advance:
        origins = [each.checkpoint.digest(advance) for each in plans]
    if work.begin(_key(plan), WEIGHTS):
        progress.note("going on with the build that was stopped")
    if plan.gate is not None:
        plan.gate.begin(_parity_subject(plan), work.scratch, progress)
    entries = write_graphs(plan, work, progress)
    _write_texts(texts, work.bundle)
    try_graphs(plan, work.bundle, progress)
    if plan.draft is not None:
        with refusing_draft():
            write_draft(plan.draft, work, progress)
            try_graphs(plan.draft, work.bundle, progress)
            plan.draft.checkpoint.refuse_changes()
    plan.checkpoint.refuse_changes()
    files = _hash_files(work.bundle, entries)
    subject = _subject(plan, identity, origins)
    (work.bundle / bom.NAME).write_bytes(bom.write_bom(subject, files))
    files = tuple(sorted((*files, _entry(work.bundle, bom.NAME)), key=lambda entry: entry.path))
    manifest = _manifest(plan, identity, origins, files)
    (work.bundle / MANIFEST_NAME).write_bytes(encode(manifest))
    return decode(encode(manifest))


def _key(plan: Plan) -> str:
    """Of the weights alone: texts that only go along, and a draft model, may be other ones."""
    return build_key(
        {
            "checkpoint": plan.checkpoint.digest_without({README, *licence.FILES}),
            "precision": plan.precision,
            "max_file_bytes": str(plan.max_file_bytes),
            "adapters": str(plan.adapters),
            "head": str(plan.head is not None),
            "kind": plan.family.kind,
        }
    )


def _texts(plan: Plan) -> dict[str, str]:
    """Path in the bundle -> text. All of them are read before the checkpoint is hashed."""
    texts = {LICENCE: plan.licence.text, TOKENIZER: plan.tokenizer.json}
    if plan.chat is not None:
        texts[TEMPLATE_PATH] = plan.chat.template
    if plan.checkpoint.has(README) and (card := plan.checkpoint.text(README)):
        texts[MODEL_CARD] = card
    if plan.draft is not None:
        texts[f"{DRAFT}/{LICENCE}"] = plan.draft.licence.text
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
        vision=plan.vision,
    )


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


def _subject(plan: Plan, identity: Identity, origins: Sequence[str]) -> bom.Subject:
    return bom.Subject(
        name=identity.name,
        version=identity.version,
        created=identity.created,
        kind=plan.family.kind,
        family=plan.checkpoint.family,
        architecture=plan.checkpoint.architecture,
        precision=plan.precision,
        licence=plan.licence.identifier,
        checkpoint_sha256=origins[0],
        draft=_draft(plan, origins),
    )


def _draft(plan: Plan, origins: Sequence[str]) -> DraftSpec | None:
    return draft_spec(plan.draft, origins[1]) if plan.draft is not None else None


def _manifest(
    plan: Plan, identity: Identity, origins: Sequence[str], files: tuple[FileEntry, ...]
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
        checkpoint_sha256=origins[0],
        files=files,
        graphs=graphs_of(plan),
        tokenizer=TOKENIZER,
        decoder=spec if isinstance(spec, DecoderSpec) else None,
        encoder=spec if isinstance(spec, EncoderSpec) else None,
        generation=plan.generation,
        prompting=plan.chat.prompting if plan.chat is not None else None,
        parity=plan.gate.result if plan.gate is not None else msgspec.UNSET,
        vision=plan.vision or msgspec.UNSET,
        draft=_draft(plan, origins) or msgspec.UNSET,
        head=plan.head_spec or msgspec.UNSET,
        reranker=spec if isinstance(spec, RerankSpec) else msgspec.UNSET,
    )
