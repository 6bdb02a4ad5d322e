"""The parity gate: the first layers of a checkpoint, beside the publisher's reference.

Owns what is compared: the real weights of the first layers, on a fixed prompt, once in 32-bit
floats, where nothing but the order of sums may differ, and once in the bundle's grade from the
bundle's own weight files, where rounding differs too. Owns the bounds. The reference implementation
(transformers on torch) is no dependency: it is asked where it is installed, in a process of its own
(parity_reference.py), and what could not be asked is said in the manifest. Refuses a model that
differs.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.bundle.manifest import DecoderSpec, EncoderSpec, Parity, RerankSpec, Spec
from appliance.compiler.probe import advance, empty_cache
from appliance.errors import CheckpointError, UnsupportedError
from installer.checkpoint.calibration import TEXTS, spread
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.families import Family
from installer.checkpoint.probe import open_graph
from installer.checkpoint.quantize import SCHEMES, Precision
from installer.checkpoint.reader import CONFIG, Checkpoint
from installer.checkpoint.shallow import Shallow, cut, float_bytes
from installer.checkpoint.space import ALLOWANCE
from installer.checkpoint.tensors import INDEX, WEIGHTS
from installer.checkpoint.tokenizer import CheckpointTokenizer
from installer.checkpoint.weights import WeightFiles
from installer.progress import Progress

Float32 = npt.NDArray[np.float32]
Mode = Literal["auto", "required", "off"]

BOUNDS: Mapping[Precision, float] = {
    "fp32": 1e-4,
    "fp16": 1e-2,
    "int8": 0.2,
    "w8a8": 0.4,
    "int4": 0.8,
}
"""Largest relative error, by grade: |got - wanted| / |wanted| over all compared numbers.

In fp32 random checkpoints show 1e-6, and an epsilon ten times too large shows 1.2e-4. In the
other grades the bound finds weights that were packed wrongly; docs/decisions/0207.
"""
LIBRARIES = ("torch", "transformers")
_TOKENS = 160
"""Longer than the shortest sliding window there is (128)."""
_ROWS = 24
"""The last tokens of the prompt, whose outputs are compared."""
_MEMORY_FACTOR, _MEMORY_BASE = 2, 3_000_000_000
"""Bytes for the reference: its weights while they are converted, and its libraries."""
_MEMORY_SHARE = 0.6
"""Of the machine's memory; a model whose first layers want more is not compared."""
_SECONDS_BASE, _BYTES_A_SECOND = 300, 20_000_000
_CHILD = Path(__file__).with_name("parity_reference.py")
_POOLINGS: Mapping[str, Callable[[Float32], Float32]] = {
    "mean": lambda rows: rows.mean(0),
    "cls": lambda rows: rows[0],
    "last": lambda rows: rows[-1],
}

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


@dataclass(frozen=True, slots=True)
class Reference:
    """What the reference computed, and how the bundle's own first layers are written and fed."""

    shape: Any
    layers: int
    tokens: tuple[int, ...]
    wanted: Float32
    versions: str
    error: float | None
    """Of the graph in 32-bit floats; None where the family has none."""


class ParityGate:
    """Compares before and after the weights are written; `result` is for the manifest."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self.result = Parity(not_run="switched off")
        self.reference: Reference | None = None

    def begin(self, subject: Subject, scratch: Path, progress: Progress) -> None:
        """Ask the reference, and compare with it in 32-bit floats.

        Raises CheckpointError (code parity_failed) if the model differs, or (parity_not_run) if
        the comparison is required and cannot be made.
        """
        if self._mode == "off":
            return
        shallow = cut(subject.checkpoint.config)
        try:
            if shallow is None:
                raise _NotRunError("config.json does not say how many layers there are")
            title = f"comparing the first {shallow.layers} layers with the reference"
            progress.step(title)
            self.reference = _ask(subject, shallow, scratch)
        except _NotRunError as error:
            self.result = Parity(not_run=error.reason)
            if self._mode == "required":
                raise CheckpointError(
                    f"the model was not compared with its reference: {error.reason}",
                    hint="see the packager's guide for what it needs, or build with --parity auto",
                    code="parity_not_run",
                ) from None
            progress.note(f"not compared: {error.reason}{error.detail}")

    def finish(self, graph: Path, weights: Path, precision: Precision, spec: Spec) -> None:
        """Compare `graph`, the first layers in the bundle's own weights. Raises CheckpointError."""
        reference = self.reference
        assert reference is not None, "there is something to compare with"
        bound = BOUNDS[precision]
        error = _compare(open_graph(graph, weights), spec, reference.tokens, reference.wanted)
        _refuse(error, bound, f"in {precision}")
        exact = reference.error if precision != "fp32" else error
        self.result = Parity(
            reference=reference.versions,
            layers=reference.layers,
            tokens=len(reference.tokens),
            grade_error=_parts(error),
            grade_bound=_parts(bound),
            error=msgspec.UNSET if exact is None else _parts(exact),
            bound=msgspec.UNSET if exact is None else _parts(BOUNDS["fp32"]),
        )


class _NotRunError(Exception):
    """Why nothing was compared. `reason` goes into the manifest: no paths, no sizes, no times."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = f" ({detail})" if detail else ""


def _ask(subject: Subject, shallow: Shallow, scratch: Path) -> Reference:
    for library in LIBRARIES:
        if find_spec(library) is None:
            raise _NotRunError(f"{library} is not installed")
    if subject.family.tower is not None:
        raise _NotRunError("models that read images are not compared")
    checkpoint = subject.checkpoint.with_config(shallow.config)
    if checkpoint.config.get("quantization_config") is not None:
        raise _NotRunError("the checkpoint's weights are quantized")
    shape = subject.family.read(checkpoint)
    spec: Spec = shape.spec()
    if isinstance(spec, RerankSpec):
        raise _NotRunError("rerankers are not compared")
    tokens = _prompt(subject.tokenizer, subject.shape.vocab, spec)
    directory = scratch / "reference"
    kept = _lay_out(checkpoint, shallow, directory)
    size = float_bytes(checkpoint.tensors.shape(name) for name in kept)
    if shutil.disk_usage(scratch).free < ALLOWANCE + size:
        raise _NotRunError("the disk has too little room for the first layers in 32-bit floats")
    rows, versions = _run_child(checkpoint, spec, tokens, directory, size)
    wanted = _as_output(rows, spec)
    error = None
    if "fp32" in subject.family.precisions and subject.precision != "fp32":
        error = _float_error(subject, checkpoint, shape, tokens, wanted, scratch / "floats")
    return Reference(shape, shallow.layers, tokens, wanted, versions, error)


def _prompt(tokenizer: CheckpointTokenizer, vocab: int, spec: Spec) -> tuple[int, ...]:
    """Text, and then tokens from the whole vocabulary."""
    most = spec.context_length if isinstance(spec, DecoderSpec) else spec.max_length
    text = tokenizer.encode(TEXTS[0])[: _TOKENS // 2]
    return tuple([*text, *spread(vocab, _TOKENS)][: min(_TOKENS, most)])


def _lay_out(checkpoint: Checkpoint, shallow: Shallow, directory: Path) -> list[str]:
    """A directory that the reference loads: the shards, an index of what is wanted, config.json.

    Returns the tensors that are wanted.
    """
    directory.mkdir()
    tensors = checkpoint.tensors
    kept = shallow.keeps(tensors.names())
    where = {name: tensors.file_of(name) for name in kept}
    for file in sorted(set(where.values())):
        (directory / file).symlink_to((checkpoint.directory / file).resolve())
    if set(where.values()) != {WEIGHTS}:
        index = {"metadata": {}, "weight_map": where}
        (directory / INDEX).write_text(json.dumps(index), "utf-8")
    (directory / CONFIG).write_text(json.dumps(shallow.config), "utf-8")
    return kept


def _run_child(
    checkpoint: Checkpoint, spec: Spec, tokens: Sequence[int], directory: Path, size: int
) -> tuple[Float32, str]:
    """What the reference computes for the last tokens, and its versions."""
    memory = _MEMORY_FACTOR * size + _MEMORY_BASE
    if memory > _MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise _NotRunError("the machine has too little memory for the reference")
    result = directory / "result.npy"
    decoder = isinstance(spec, DecoderSpec)
    asked = {
        "checkpoint": str(directory),
        "architecture": checkpoint.architecture,
        "tokens": list(tokens),
        "rows": _ROWS if decoder else len(tokens),
        "logits": decoder,
        "memory": memory,
        "result": str(result),
    }
    versions = _answer(asked, directory, _SECONDS_BASE + size / _BYTES_A_SECOND)
    rows: Float32 = np.load(result, allow_pickle=False)
    return rows, versions


def _answer(asked: Mapping[str, object], directory: Path, seconds: float) -> str:
    """Run the reference in its process for at most so long; its versions."""
    environment = {
        "PATH": os.defpath,
        "HOME": str(directory),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_CHILD)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            env=environment,
            cwd=directory,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _NotRunError("the reference took too long") from None
    if done.returncode != 0:
        raise _NotRunError("the reference ended without an answer", done.stderr[-200:].strip())
    answer = json.loads(done.stdout)
    if "failed" in answer:
        raise _NotRunError(f"the reference was not able to: {answer['failed']}", answer["detail"])
    return str(answer["versions"])


def _as_output(rows: Float32, spec: Spec) -> Float32:
    """The reference's rows as the graph gives them out: logits, or one embedding."""
    if isinstance(spec, DecoderSpec):
        return rows
    assert isinstance(spec, EncoderSpec), "others are not compared"
    vector = _POOLINGS[spec.pooling](rows)
    return vector / np.linalg.norm(vector) if spec.normalize else vector


def _float_error(
    subject: Subject,
    checkpoint: Checkpoint,
    shape: Any,  # noqa: ANN401  # the family's own
    tokens: Sequence[int],
    wanted: Float32,
    directory: Path,
) -> float:
    """Error of the first layers in 32-bit floats. Raises CheckpointError beyond the bound."""
    directory.mkdir()
    graph = directory / "model.onnx"
    with WeightFiles(directory, limit=1 << 62) as files:
        # Tensors of its own: what is read here is not read for the bundle.
        other = Checkpoint(checkpoint.directory).with_config(checkpoint.config)
        shape = subject.family.read(other)
        builder = GraphBuilder(other.tensors, files, SCHEMES["fp32"])
        subject.family.build(builder, shape, *(() if subject.form is None else (subject.form,)))
        builder.save(graph, name="shallow")
    error = _compare(open_graph(graph), shape.spec(), tokens, wanted)
    for path in directory.iterdir():
        path.unlink()
    _refuse(error, BOUNDS["fp32"], "in 32-bit floats")
    return error


def _compare(
    session: ort.InferenceSession, spec: Spec, tokens: Sequence[int], wanted: Float32
) -> float:
    """Relative error of what `session` computes."""
    try:
        got = _computed(session, spec, tokens)
    except UnsupportedError as error:
        raise CheckpointError(error.message, hint=error.hint) from error
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    difference = np.linalg.norm((got - wanted).astype(np.float64))
    return float(difference / max(float(np.linalg.norm(wanted.astype(np.float64))), 1e-30))


def _computed(session: ort.InferenceSession, spec: Spec, tokens: Sequence[int]) -> Float32:
    if isinstance(spec, DecoderSpec):
        rows = min(_ROWS, len(tokens))
        cache = empty_cache(session, spec, len(tokens))
        logits: Float32 = advance(session, cache, 0, tokens, rows)["logits"]
        return logits
    ids = np.array([tokens], np.int64)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if {entry.name for entry in session.get_inputs()} != feed.keys():
        raise UnsupportedError("the graph has inputs that the parity gate does not know")
    embeddings: Float32 = session.run(["embeddings"], feed)[0][0]
    return embeddings


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
