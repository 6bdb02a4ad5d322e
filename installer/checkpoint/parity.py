"""The parity gate: the first layers of a checkpoint, beside the publisher's reference.

Owns when it is compared: the real weights of the first layers, on a fixed prompt
(parity_trial.py), once in 32-bit floats, where nothing but the order of sums may differ, and once
in the bundle's grade from the bundle's own weight files, where rounding differs too. Owns the
bounds. The reference is asked where it is installed (parity_child.py), over weights that
parity_weights.py lays out; what could not be asked is said in the manifest. Refuses a model that
differs.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.bundle.specs import Parity, VisionSpec
from appliance.errors import CheckpointError, UnsupportedError
from installer.checkpoint.families.family import Family
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.parity_child import NotAskedError, expect_libraries, run_reference
from installer.checkpoint.parity_trial import Trial, make_trial, with_logits
from installer.checkpoint.parity_weights import Unpacker, lay_out, plan_layout
from installer.checkpoint.probe import open_graph
from installer.checkpoint.quantize import SCHEMES, Precision
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.shallow import Shallow, cut
from installer.checkpoint.space import ALLOWANCE
from installer.checkpoint.tokenizer import CheckpointTokenizer
from installer.checkpoint.weights import WeightFiles
from installer.progress import Progress

Float32 = npt.NDArray[np.float32]
Mode = Literal["auto", "required", "off"]

BOUNDS: Mapping[Precision, float] = {
    "fp32": 1e-4,
    "fp16": 1e-2,
    "fp8": 0.2,
    "int8": 0.2,
    "w8a8": 0.4,
    "int4": 0.8,
    "w4a8": 0.9,
}
"""Largest relative error, by grade: |got - wanted| / |wanted| over all compared numbers.

In fp32 random checkpoints show 1e-6, and an epsilon ten times too large shows 1.2e-4. In the
other grades the bound finds weights that were packed wrongly; docs/decisions/0207.
"""
Form = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """What of a build the gate needs to know."""

    checkpoint: Checkpoint
    family: Family
    precision: Precision
    tokenizer: CheckpointTokenizer
    shape: Any
    form: Form | None
    """Of a float graph; None where the family has no forms."""
    vision: VisionSpec | None


@dataclass(frozen=True, slots=True)
class Reference:
    """What the reference computed, and how the bundle's own first layers are written and fed."""

    shape: Any
    layers: int
    trial: Trial
    wanted: Float32
    versions: str
    unpacked_by: Unpacker | None
    error: float | None
    """Of the graph in 32-bit floats; None where the family has none."""


class ParityGate:
    """Compares before and after the weights are written; `result` is for the manifest."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self.result = Parity(not_run="switched off")
        self.reference: Reference | None = None

    def expect(self) -> None:
        """Find that the libraries are missing before anything long is begun.

        Raises CheckpointError (code parity_not_run) if the comparison is required.
        """
        try:
            expect_libraries()
        except NotAskedError as error:
            self._refuse_unasked(error)

    def begin(self, subject: Subject, scratch: Path, progress: Progress) -> None:
        """Ask the reference, and compare with it in 32-bit floats.

        Raises CheckpointError (code parity_failed) if the model differs, or (parity_not_run) if
        the comparison is required and cannot be made.
        """
        if self._mode == "off":
            return
        shallow = cut(subject.family.restated(subject.checkpoint.config))
        try:
            if shallow is None:
                raise NotAskedError("config.json does not say how many layers there are")
            title = f"comparing the first {shallow.layers} layers with the reference"
            progress.step(title)
            self.reference = _ask(subject, shallow, scratch)
        except NotAskedError as error:
            self.result = Parity(not_run=error.reason)
            self._refuse_unasked(error)
            progress.note(f"not compared: {error.reason}{error.detail}")

    def _refuse_unasked(self, error: NotAskedError) -> None:
        if self._mode == "required":
            raise CheckpointError(
                f"the model was not compared with its reference: {error.reason}",
                hint="see the packager's guide for what it needs, or build with --parity auto",
                code="parity_not_run",
            ) from None

    def finish(self, graph: Path, weights: Path, precision: Precision, tower: Path | None) -> None:
        """Compare `graph`, the first layers in the bundle's own weights. Raises CheckpointError.

        `tower` is the bundle's, if the model sees.
        """
        reference = self.reference
        assert reference is not None, "there is something to compare with"
        bound = BOUNDS[precision]
        error = _compare(open_graph(graph, weights), reference.trial, reference.wanted, tower)
        _refuse(error, bound, f"in {precision}")
        exact = reference.error if precision != "fp32" else error
        self.result = Parity(
            reference=reference.versions,
            layers=reference.layers,
            tokens=len(reference.trial.tokens),
            grade_error=_parts(error),
            grade_bound=_parts(bound),
            error=msgspec.UNSET if exact is None else _parts(exact),
            bound=msgspec.UNSET if exact is None else _parts(BOUNDS["fp32"]),
            unpacked_by=reference.unpacked_by or msgspec.UNSET,
        )


def _ask(subject: Subject, shallow: Shallow, scratch: Path) -> Reference:
    """Raises NotAskedError."""
    expect_libraries()
    checkpoint = subject.checkpoint.with_config(shallow.config)
    # Tensors of its own: what is read here is not read for the bundle.
    apart = Checkpoint(checkpoint.directory).with_config(checkpoint.config)
    shape = with_logits(subject.family.read(apart))
    trial = make_trial(apart, subject.tokenizer, shape, subject.vision, open_graph)
    layout = plan_layout(checkpoint, shallow)
    # Once for the graph in 32-bit floats; what is written out for the reference comes before.
    if shutil.disk_usage(scratch).free < ALLOWANCE + layout.size:
        raise NotAskedError("the disk has too little room for the first layers in 32-bit floats")
    # The process has a working directory of its own: a relative path would mean another place.
    directory = scratch.resolve() / "reference"
    told = checkpoint.with_config({**shallow.config, **subject.family.stand_in})
    lay_out(checkpoint, told.config, layout, directory)
    asked = trial.asked(directory) | {"architecture": told.architecture}
    rows, versions = run_reference(
        asked, directory, layout.size, mxfp4=layout.unpacked_by == "reference"
    )
    shutil.rmtree(directory)
    wanted, error = trial.wanted(rows), None
    if "fp32" in subject.family.precisions and subject.precision != "fp32":
        error = _float_error(subject, checkpoint, trial, wanted, scratch / "floats")
    layers, by = shallow.layers, layout.unpacked_by
    return Reference(shape, layers, trial, wanted, versions, by, error)


def _float_error(
    subject: Subject, checkpoint: Checkpoint, trial: Trial, wanted: Float32, directory: Path
) -> float:
    """Error of the first layers in 32-bit floats. Raises CheckpointError beyond the bound."""
    directory.mkdir()
    graph, tower = directory / "model.onnx", directory / "tower.onnx"
    with WeightFiles(directory, limit=1 << 62) as files:
        # Tensors of its own: what is read here is not read for the bundle.
        other = Checkpoint(checkpoint.directory).with_config(checkpoint.config)
        shape = with_logits(subject.family.read(other))
        builder = GraphBuilder(other.tensors, files, SCHEMES["fp32"])
        subject.family.build(builder, shape, *(() if subject.form is None else (subject.form,)))
        builder.save(graph, name="shallow")
        if subject.family.tower is not None:
            builder = GraphBuilder(other.tensors, files, SCHEMES["fp32"])
            subject.family.tower(builder, shape.tower)
            builder.save(tower, name="tower")
    error = _compare(open_graph(graph), trial, wanted, tower)
    shutil.rmtree(directory)
    _refuse(error, BOUNDS["fp32"], "in 32-bit floats")
    return error


def _compare(
    session: ort.InferenceSession, trial: Trial, wanted: Float32, tower: Path | None
) -> float:
    """Relative error of what `session` computes."""
    try:
        got = trial.computed(session, tower)
    except UnsupportedError as error:
        raise CheckpointError(error.message, hint=error.hint) from error
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    difference = np.linalg.norm((got - wanted).astype(np.float64))
    return float(difference / max(float(np.linalg.norm(wanted.astype(np.float64))), 1e-30))


def _refuse(error: float, bound: float, where: str) -> None:
    if not error <= bound:
        raise CheckpointError(
            f"the model's first layers differ from the reference {where}: relative error "
            f"{error:.2g}, allowed {bound:g}",
            hint="this release would build another model than the publisher's: do not use it, "
            "and report the checkpoint's config.json",
            code="parity_failed",
        )


def _parts(error: float) -> int:
    """Parts per billion, rounded upwards to two digits: the last bits of sums differ by machine."""
    parts = math.ceil(round(error * 1e9, 3))
    unit = int("1" + "0" * (len(str(parts)) - 2)) if parts >= 100 else 1
    return -(-parts // unit) * unit
