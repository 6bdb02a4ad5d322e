"""Whether a compiled decoder's steps can be recorded as a CUDA graph here, and replayed.

Owns the trial, in the compiler's own process: a recording that fails leaves a session of which
nothing is known, so the engine shall not be the first to try. What is replayed must be what the
same steps give when they are run kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec
from appliance.compiler import golden
from appliance.compiler.golden import Piece, Place, Stages
from appliance.compiler.gpu_compile import Target, load
from appliance.compiler.probe import Array, cannot_run, is_state
from appliance.compiler.record import DRAFTS_NOT_RECORDED, NOT_RECORDED, Refusal
from appliance.errors import UnsupportedError

GRAPH_ID = "gpu_graph_id"
"""Option of a run of a session that can record: the number to record it under, and to replay."""
UNRECORDED = "-1"
RECORDS = {"enable_cuda_graph": "1"}
"""The provider's option for such a session."""
_NUMBER = "1"
_DRAFTED = 2
"""Tokens of a step that stands for those with a draft."""
_BOUND = 1e-3
_DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}


def why_unrecorded(
    graphs: Sequence[Path], spec: DecoderSpec, targets: Sequence[Target]
) -> Refusal | None:
    """Why the decoder's steps, or those with a draft, have to be run kernel by kernel.

    None if they do not. `graphs` are its stages, each for one of `targets`.
    """
    if targets[0].device != "cuda":
        return None
    recording = [replace(each, options={**each.options, **RECORDS}) for each in targets]
    for width, code in ((1, NOT_RECORDED), (_DRAFTED, DRAFTS_NOT_RECORDED)):
        try:
            _try(graphs, spec, recording, width)
        except UnsupportedError as error:
            return Refusal(provider="cuda", code=code, message=error.message)
    return None


def _try(graphs: Sequence[Path], spec: DecoderSpec, targets: Sequence[Target], width: int) -> None:
    """Raise UnsupportedError if steps of `width` tokens are not, replayed, what they are run.

    In a session of its own: of one whose recording has failed nothing is known.
    """
    stages = [load(graph, target) for graph, target in zip(graphs, targets, strict=True)]
    run, replayed = (
        _steps(stages, spec, [target.place for target in targets], how, width)
        for how in (UNRECORDED, _NUMBER)
    )
    away = float(np.linalg.norm(run - replayed))
    if not away <= _BOUND * float(np.linalg.norm(run)):
        raise UnsupportedError(f"replayed steps differ by {away:.3g} from those that are run")


def _steps(
    stages: Stages, spec: DecoderSpec, places: Sequence[Place], how: str, width: int = 1
) -> Array:
    """Logits [tokens, vocab] of the golden prompt's steps, of `width` tokens each, run under the
    number `how`.
    """
    slots = golden.slots(stages, spec, places)
    steps = golden.steps(spec, width)
    for piece in golden.pieces(spec):
        if piece.start < steps[0].start:
            golden.run_piece(stages, slots, piece, _options(UNRECORDED))
    step = _Step(stages, slots, spec, places, width)
    before = {name: slots[name].numpy().copy() for name in slots if is_state(name)}
    first = step.run(steps[0], _options(how))
    if before:  # what is recorded is computed more than once, and each time is read anew
        for name, state in before.items():
            slots[name].update_inplace(state)
        first = step.run(steps[0], _options(how))
    return np.concatenate([first, *(step.run(piece, _options(how)) for piece in steps[1:])])


def _options(how: str) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry(GRAPH_ID, how)
    return options


class _Step:
    """`width` tokens a run, at addresses that stay."""

    def __init__(
        self,
        stages: Stages,
        slots: Mapping[str, ort.OrtValue],
        spec: DecoderSpec,
        places: Sequence[Place],
        width: int,
    ) -> None:
        first, handed = golden.steps(spec, width)[0], dict[str, ort.OrtValue]()
        self._stages: list[_StageOfStep] = []
        for session, behind, place in zip(stages, [*stages[1:], None], places, strict=True):
            made = _made_for(session, behind)
            stage = _StageOfStep(session, slots, first, place, handed, made)
            self._stages.append(stage)
            handed = stage.made

    def run(self, piece: Piece, options: ort.RunOptions) -> Array:
        """Its logits, [width, vocab]. Raises UnsupportedError."""
        handed: Mapping[str, Array] = {}
        for stage in self._stages:
            handed = stage.run(piece, handed, options)
        return handed["logits"]


class _StageOfStep:
    """One stage of it; what it is handed, and what it makes, has addresses of its own.

    Args:
        place: of all of that.
        handed: what the stage before makes.
        made: what this one makes.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        slots: Mapping[str, ort.OrtValue],
        first: Piece,
        place: Place,
        handed: Mapping[str, ort.OrtValue],
        made: Sequence[ort.NodeArg],
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._given: dict[str, ort.OrtValue] = {}
        empty = {name: value.numpy() for name, value in handed.items()}
        for name, array in (golden.feed(session, first) | empty).items():
            if name == "total_sequence_length":
                self._binding.bind_cpu_input(name, array)
                continue
            self._given[name] = ort.OrtValue.ortvalue_from_numpy(array, *place)
            self._binding.bind_ortvalue_input(name, self._given[name])
        golden.bind_slots(session, self._binding, slots)
        self.made: dict[str, ort.OrtValue] = {}
        for entry in made:
            nothing = ort.OrtValue.ortvalue_from_numpy(_nothing(entry, len(first.ids)), *place)
            self.made[entry.name] = nothing
            self._binding.bind_ortvalue_output(entry.name, nothing)

    def run(
        self, piece: Piece, handed: Mapping[str, Array], options: ort.RunOptions
    ) -> Mapping[str, Array]:
        """What it makes, by name. Raises UnsupportedError."""
        for name, array in (golden.feed(self._session, piece) | dict(handed)).items():
            if name in self._given:
                self._given[name].update_inplace(array)
        try:
            # The runtime's exceptions share no base class but Exception.
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:
            raise cannot_run(error) from error
        # On the processor it is the memory itself.
        return {name: value.numpy().copy() for name, value in self.made.items()}


def _made_for(
    session: ort.InferenceSession, behind: ort.InferenceSession | None
) -> list[ort.NodeArg]:
    """What a stage makes beside its cache, as the next one says; the last one says it itself."""
    names = {entry.name for entry in session.get_outputs()}
    said = session.get_outputs() if behind is None else behind.get_inputs()
    return [e for e in said if e.name in names and not e.name.startswith("present_")]


def _nothing(entry: ort.NodeArg, tokens: int) -> Array:
    """Zeros of an output's type, for one sequence of which each token gives a row."""
    sizes = {"batch": 1, "tokens": tokens, "rows": tokens}
    shape = [size if isinstance(size, int) else sizes[size] for size in entry.shape]
    return np.zeros(shape, _DTYPES[entry.type])
