"""A model in two stages on one card: `python -m gpu_check.staged BUNDLE OUT GOLDEN`.

Cut and compiled as for two GPUs, and computed by the engine's own steps with what is copied between
them; only that both stages share the card. Each kind of step is run until it is recorded, where it
can be, and replayed. Writes what the compiler's process writes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import decode
from appliance.bundle.specs import DecoderSpec
from appliance.compiler import __main__ as compiler
from appliance.compiler import golden
from appliance.compiler.artifact import GRAPH_NAME, of_stage
from appliance.compiler.gpu_compile import CUDA, compile_cuda
from appliance.compiler.probe import Array
from appliance.compiler.record import Outcome
from appliance.compiler.recording import why_unrecorded
from appliance.engine.cache_budget import CacheShape, token_bytes
from appliance.engine.device.device import CudaDevice, Device
from appliance.engine.device.pool import ITEM_BYTES, DevicePool
from appliance.engine.device.room import Room
from appliance.engine.device.stages import Stage, Stages, layers_of
from appliance.engine.device.steps import Steps
from appliance.engine.session import open_cuda_session

STAGES = 2
_AGAIN = 5
"""Runs of each step, the last of which is replayed if it was recorded."""
_ROWS = 8


def main(bundle: Path, out: Path, golden_dir: Path) -> int:
    """Returns the process's exit status."""
    manifest, expected = decode((bundle / MANIFEST_NAME).read_bytes()), golden.read(golden_dir)
    decoder, targets = manifest.decoder, [CUDA] * STAGES
    assert decoder is not None, "a chat model is tried"
    compare = compile_cuda(bundle, manifest, out, expected, targets, manifest.graph.precision)
    graphs = [out / of_stage(GRAPH_NAME, number) for number in range(STAGES)]
    unrecorded = why_unrecorded(graphs, decoder, targets)
    sessions = [open_cuda_session(out, graph.name, record=unrecorded is None) for graph in graphs]
    devices = [CudaDevice() for _ in graphs]
    measured = by_steps(sessions, decoder, devices, record=unrecorded is None)
    served = golden.compare(measured, expected, manifest.graph.precision)
    worse = max((compare, served), key=lambda compared: compared.error)
    sys.stdout.write(msgspec.json.encode(Outcome(compared=worse, unrecorded=unrecorded)).decode())
    return 0


def by_steps(
    sessions: Sequence[ort.InferenceSession],
    decoder: DecoderSpec,
    devices: Sequence[Device],
    *,
    record: bool,
) -> Array:
    """Logits [rows, vocab] of the golden prompt, as the engine computes it over these stages."""
    shape = CacheShape(1, golden.CAPACITY, token_bytes(decoder, ITEM_BYTES))
    with ExitStack() as closing:
        stages = Stages(
            [
                Stage(session, DevicePool(decoder, shape, device, layers_of(session)))
                for session, device in zip(sessions, devices, strict=True)
            ]
        )
        closing.callback(stages.close)
        room = Room(
            *(stages, [], decoder.vocab_size),
            tokens=golden.CAPACITY,
            batch=1,
            rows=_ROWS,
            results=_ROWS,
            features=0,
            recording=record,
        )
        closing.callback(room.close)
        return _computed(room, decoder, devices[-1], record=record)


def _computed(room: Room, decoder: DecoderSpec, last: Device, *, record: bool) -> Array:
    buffers, prompts = room.buffers, room.bind(0, 1)
    steps = Steps(
        lambda batch: room.bind(0, batch),
        *(buffers, golden.CAPACITY, None),
        record=record,
        record_drafts=record,
    )
    decoded = golden.steps(decoder, 1)[0].start
    found = []
    for piece in golden.pieces(decoder):
        if piece.start < decoded:
            buffers.fill([piece.ids], [piece.start], rows=piece.rows)
            prompts.aim(len(piece.ids), piece.bound, 0, rows=piece.rows)
            prompts.run()
        else:
            for _ in range(_AGAIN):
                steps.run([piece.start], [piece.ids])
        rows = np.zeros((piece.rows, decoder.vocab_size), np.float32)
        last.read(buffers.logits_at(0), rows)
        found.append(rows)
    return np.concatenate(found)


if __name__ == "__main__":
    sys.exit(compiler.reporting(lambda: main(*map(Path, sys.argv[1:]))))
