"""An adapter's checkpoint becomes a signed bundle: a few megabytes beside its base.

Owns the order of the steps and what the bundle consists of. The base is named by its bundle, whose
manifest says which checkpoint it was made from and which layers adapters may change; so a bundle of
an adapter fits that model and no other. Appears by one rename, as a model's does, and under its
lock; what is made in seconds does not go on after a stop.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from appliance.bundle.adapter import check_base
from appliance.bundle.files import FORMAT, MANIFEST_NAME, is_name
from appliance.bundle.manifest import Manifest, decode, encode
from appliance.bundle.specs import Adapted, AdapterBase, AdapterSpec, FileEntry
from appliance.config import source_date_epoch
from appliance.errors import CheckpointError, UnsupportedError, UsageError
from appliance.fsops import hash_regular, read_regular, resolve_inside, walk_files
from installer.checkpoint import bom
from installer.checkpoint.adapter_checkpoint import AdapterCheckpoint
from installer.checkpoint.licence import Licence, find_licence
from installer.checkpoint.prompting import TEMPLATE_FILE
from installer.checkpoint.unfinished import unfinished
from installer.packager_disk import expect_room
from installer.signing import BundleSigner

LICENCE = "LICENSE"
PRECISION = "fp32"
_ALLOWANCE = 4_000_000
"""Bytes for licence, bill of materials and signature."""


@dataclass(frozen=True, slots=True)
class _Plan:
    checkpoint: AdapterCheckpoint
    licence: Licence
    spec: AdapterSpec


def build_adapter(
    checkpoint: Path,
    out: Path,
    *,
    name: str,
    version: str,
    base: Path,
    base_manifest: Manifest,
    license_file: Path | None = None,
    signer: BundleSigner | None,
    created: int | None = None,
) -> Manifest:
    """Build the bundle of the adapter in `checkpoint` in the new directory `out` and sign it.

    Args:
        base: directory of the bundle that the adapter was trained on, in any grade.
        base_manifest: the manifest in it, verified.
        signer, created: as of a model's bundle.

    Raises CheckpointError naming what cannot be expressed, UnsupportedError if the base takes no
    adapters, ConflictError if `out` exists, LockedError if another process builds it, UsageError,
    CapacityError if the disk has no room, StorageError.
    """
    for word, value in (("name", name), ("version", version)):
        if not is_name(value):
            raise UsageError(
                f"{value!r} cannot be the bundle's {word}",
                hint="use 1 to 64 of the characters a-z 0-9 . _ -",
            )
    if name == base_manifest.name:
        raise UsageError(
            "an adapter cannot have its base's name", hint="requests choose between them by name"
        )
    if created is None:
        epoch = source_date_epoch()
        created = int(time.time()) if epoch is None else epoch
    plan = _plan(checkpoint, base, base_manifest, license_file)
    with unfinished(out, goes_on=False) as work:
        work.begin_anew()
        needed = plan.spec.layers * plan.spec.file_size + _ALLOWANCE
        expect_room(work.directory, needed, "the bundle needs")
        manifest = _write(plan, work.bundle, name, version, created)
        check_base(manifest, base_manifest)
        if signer is not None:
            signer.sign(work.bundle)
        work.finish(out)
    return manifest


def _plan(directory: Path, base: Path, manifest: Manifest, license_file: Path | None) -> _Plan:
    if manifest.kind != "chat" or manifest.decoder is None:
        raise UnsupportedError(
            f"{manifest.name} {manifest.version} cannot be the base of an adapter",
            hint="name the bundle of a chat model: --base",
        )
    adapted = manifest.graph.adapted
    if not isinstance(adapted, Adapted):
        raise UnsupportedError(
            f"{manifest.name} {manifest.version} was not built to serve adapters",
            hint="build the base again with --adapters, under a new version",
            code="adapters_not_built",
        )
    checkpoint = AdapterCheckpoint(directory)
    _refuse_other_template(checkpoint, base, manifest)
    spec = AdapterSpec(
        base=AdapterBase(
            name=manifest.name,
            family=manifest.family,
            checkpoint_sha256=manifest.checkpoint_sha256,
        ),
        rank=checkpoint.lora.rank,
        layers=manifest.decoder.layers,
        targets=checkpoint.targets(adapted.targets, manifest.decoder.layers),
    )
    return _Plan(checkpoint, find_licence(checkpoint, license_file), spec)


def _refuse_other_template(checkpoint: AdapterCheckpoint, base: Path, manifest: Manifest) -> None:
    """An adapter is prompted as its base is: its own template must be the same."""
    if not checkpoint.has(TEMPLATE_FILE) or manifest.prompting is None:
        return
    path = manifest.prompting.template
    entry = next(entry for entry in manifest.files if entry.path == path)
    there = read_regular(resolve_inside(base, path), limit=entry.size, name=path)
    if there.decode("utf-8").strip() != checkpoint.text(TEMPLATE_FILE).strip():
        raise CheckpointError(
            f"{TEMPLATE_FILE} of the adapter is not its base's",
            hint="build a base from the checkpoint with this template, or remove the file if the "
            "adapter is to be prompted as its base is",
        )


def _write(plan: _Plan, directory: Path, name: str, version: str, created: int) -> Manifest:
    (directory / LICENCE).write_text(plan.licence.text, "utf-8")
    for number, path in enumerate(plan.spec.files):
        (directory / path).parent.mkdir(exist_ok=True)
        with (directory / path).open("xb") as file:
            for matrix in plan.checkpoint.layer(number, plan.spec.targets):
                file.write(matrix.astype("<f4").tobytes())
    files = tuple(_entry(directory, path) for path in walk_files(directory))
    origin, base = plan.checkpoint.digest(), plan.spec.base
    subject = bom.Subject(
        name=name,
        version=version,
        created=created,
        kind="adapter",
        family=base.family,
        architecture=f"LoRA of {base.name}, checkpoint {base.checkpoint_sha256}",
        precision=PRECISION,
        licence=plan.licence.identifier,
        checkpoint_sha256=origin,
    )
    (directory / bom.NAME).write_bytes(bom.write_bom(subject, files))
    files = (*files, _entry(directory, bom.NAME))
    manifest = Manifest(
        format=FORMAT,
        name=name,
        version=version,
        created=created,
        kind="adapter",
        family=base.family,
        license=plan.licence.identifier,
        checkpoint_sha256=origin,
        files=tuple(sorted(files, key=lambda entry: entry.path)),
        graphs=(),
        tokenizer="",
        adapter=plan.spec,
    )
    (directory / MANIFEST_NAME).write_bytes(encode(manifest))
    return decode(encode(manifest))


def _entry(directory: Path, name: str) -> FileEntry:
    size, sha256 = hash_regular(directory / name, name=name)
    return FileEntry(path=name, size=size, sha256=sha256)
