"""Whether a compiled decoder's steps can be recorded as a CUDA graph here, and replayed.

Owns the trial, in the compiler's own process: a recording that fails leaves a session of which
nothing is known, so the engine shall not be the first to try. What is replayed must be what the
same steps give when they are run kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec
from appliance.compiler import golden
from appliance.compiler.golden import Piece
from appliance.compiler.gpu_compile import Target, load
from appliance.compiler.probe import Array, cannot_run
from appliance.compiler.record import Refusal
from appliance.errors import UnsupportedError

GRAPH_ID = "gpu_graph_id"
"""Option of a run of a session that can record: the number to record it under, and to replay."""
UNRECORDED = "-1"
RECORDS = {"enable_cuda_graph": "1"}
"""The provider's option for such a session."""
_NUMBER = "1"
_BOUND = 1e-3


def why_unrecorded(graph: Path, spec: DecoderSpec, target: Target) -> Refusal | None:
    """Why the decoder's steps have to be run kernel by kernel; None if they do not."""
    if target.device != "cuda":
        return None
    try:
        session = load(graph, replace(target, options={**target.options, **RECORDS}))
        run, replayed = (_steps(session, spec, target.device, how) for how in (UNRECORDED, _NUMBER))
    except UnsupportedError as error:
        return _refusal(error.message)
    away = float(np.linalg.norm(run - replayed))
    if not away <= _BOUND * float(np.linalg.norm(run)):
        return _refusal(f"replayed steps differ by {away:.3g} from those that are run")
    return None


def _refusal(message: str) -> Refusal:
    return Refusal(provider="cuda", code="not_recorded", message=message)


def _steps(session: ort.InferenceSession, spec: DecoderSpec, device: str, how: str) -> Array:
    """Logits [steps, vocab] of the golden prompt's single tokens, run under the number `how`."""
    slots = golden.slots(session, spec, device)
    step = _Step(session, slots, spec, device)
    found = []
    for piece in golden.pieces(spec):
        if len(piece.ids) > 1:
            golden.run_piece(session, slots, piece, _options(UNRECORDED))
        else:
            found.append(step.run(piece, _options(how)))
    return np.concatenate(found)


def _options(how: str) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry(GRAPH_ID, how)
    return options


class _Step:
    """One token a run, at addresses that stay."""

    def __init__(
        self,
        session: ort.InferenceSession,
        slots: Mapping[str, ort.OrtValue],
        spec: DecoderSpec,
        device: str,
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._given: dict[str, ort.OrtValue] = {}
        for name, array in golden.feed(session, Piece(0, (0,), 1)).items():
            if name == "total_sequence_length":
                array[...] = golden.CAPACITY
                self._binding.bind_cpu_input(name, array)
                continue
            self._given[name] = ort.OrtValue.ortvalue_from_numpy(array, device, 0)
            self._binding.bind_ortvalue_input(name, self._given[name])
        golden.bind_slots(self._binding, slots)
        self._logits = ort.OrtValue.ortvalue_from_numpy(
            np.zeros((1, spec.vocab_size), np.float32), device, 0
        )
        self._greedy = ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.int64), device, 0)
        self._binding.bind_ortvalue_output("logits", self._logits)
        self._binding.bind_ortvalue_output("greedy", self._greedy)

    def run(self, piece: Piece, options: ort.RunOptions) -> Array:
        """Its logits, [1, vocab]. Raises UnsupportedError."""
        for name, array in golden.feed(self._session, piece).items():
            if name in self._given:
                self._given[name].update_inplace(array)
        try:
            # The runtime's exceptions share no base class but Exception.
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:
            raise cannot_run(error) from error
        logits: Array = self._logits.numpy().copy()  # on the processor it is the memory itself
        return logits
