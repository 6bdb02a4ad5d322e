"""The worker that measures what kinds of steps cost: `python -m gpu_check.kinds ROOT NAME`.

Prompts of many lengths, pieces from a prompt's middle, decoding as it is and replayed, moves of
slots, fetching a row of logits, drawing tokens, and products by what weights are; each the first
time, when kernels are loaded and plans are made, and again. Asked for `pinned` it opens the session
that the engine opens, which names its attention kernels, and measures the products; for `default`
the same artifact with what the provider chooses by itself. On a machine without a GPU it runs the
same graph over ordinary memory, to be tried out.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec
from appliance.compiler import Artifact, Provider, libraries, open_artifact
from appliance.compiler.recording import RECORDS
from appliance.config import Layout
from appliance.engine.cache_budget import CacheShape, token_bytes
from appliance.engine.choosing import Choice
from appliance.engine.device.binding import DeviceBinding, StepBuffers
from appliance.engine.device.device import CudaDevice, Device, HostDevice
from appliance.engine.device.draw import DeviceDraw
from appliance.engine.device.logits import DeviceLogits
from appliance.engine.device.pool import ITEM_BYTES, DevicePool
from appliance.engine.device.runner import DeviceRunner
from appliance.engine.device.stages import Stage
from appliance.engine.sampling import SamplingParams
from appliance.engine.session import (
    CUDA_PROVIDER,
    GRAPH_NAME,
    open_cuda_reader,
    open_cuda_session,
    open_small_session,
)
from appliance.errors import UnsupportedError
from appliance.model_store import ModelStore, StoredBundle
from appliance.scheduler import Move
from appliance.trust.node_key import NodePublicKey
from gpu_check.ours import device_of
from gpu_check.products import measure_products
from gpu_check.workloads import answer_all

LENGTHS = (16, 100, 256, 257, 300, 512, 1000, 2000)
PIECES = (200, 300)
"""Where pieces of 100 tokens start: the second has the same length and another place."""
STREAMS = (1, 8, 32, 128)
DRAFTED = (1, 4, 8)
"""Tokens beyond one in a step of a sequence alone."""
ATTENTION = ("pinned", "default")
"""In this order: kernels that both need are loaded by the first, and plans are the second's."""
_PIECE, _HELD, _AGAIN = 100, 300, 3
_WARM = 40
"""Tokens of a prompt that is not measured."""
_PROMPTS, _DECODES = (2, 2048), (max(STREAMS), 512)
"""Slots and their capacity."""
_SHAPES = [(streams, 0) for streams in STREAMS] + [(1, drafted) for drafted in DRAFTED]
_HOST_MEMORY = 8 << 30

Steps = Mapping[str, tuple[float, float]]
"""Kind of step -> milliseconds of the first and, the median of three, of further ones."""


def main(root: Path, name: str) -> None:
    layout = Layout(root)
    bundle = ModelStore(layout.models).get(name)
    artifact = open_artifact(
        layout.artifacts, bundle.digest, NodePublicKey.load(layout.node / "node.pub")
    )

    def answer(asked: dict[str, Any]) -> Mapping[str, object]:
        if artifact.provider == "cpu":
            return {"steps": measure_on_host(bundle)}
        return {"steps": _measure_on_gpu(bundle, artifact, asked["attention"], root)}

    answer_all(answer, device=device_of(artifact))


def measure_on_host(bundle: StoredBundle) -> Steps:
    """The graph for CUDA, computed by the processor over ordinary memory."""
    graph, decoder = bundle.manifest.variant("cuda"), bundle.manifest.decoder
    assert graph is not None
    assert decoder is not None
    options = ort.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path",
        str(bundle.directory / graph.weights_folder),
    )
    data = (bundle.directory / graph.path).read_bytes()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return measure(session, HostDevice(_HOST_MEMORY), decoder, record=False)


def _measure_on_gpu(bundle: StoredBundle, artifact: Artifact, attention: str, work: Path) -> Steps:
    if artifact.provider != "cuda":
        raise UnsupportedError(f"kinds of steps are not told apart on {artifact.provider}")
    assert bundle.manifest.decoder is not None
    record = artifact.record.replays_drafts
    opens = open_cuda_session if attention == "pinned" else _open_plainly
    session = opens(artifact.directory, record=record)
    steps = measure(session, CudaDevice(), bundle.manifest.decoder, record=record)
    if attention != ATTENTION[0]:
        return steps
    del session
    return {**steps, **measure_products(work / "products", open_cuda_reader, "cuda", timed)}


def _open_plainly(artifact: Path, *, record: bool) -> ort.InferenceSession:
    """As `open_cuda_session`, without a word about attention."""
    libraries.preload()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry(*libraries.MIXED_PRODUCTS)
    settings = {"device_id": "0", **libraries.CUDA_OPTIONS, **(RECORDS if record else {})}
    del settings[libraries.ATTENTION_KERNELS[0]]
    return ort.InferenceSession(
        artifact / GRAPH_NAME, options, providers=[(CUDA_PROVIDER, settings)], enable_fallback=0
    )


def measure(
    session: ort.InferenceSession, device: Device, decoder: DecoderSpec, *, record: bool
) -> Steps:
    """Every kind of step; `record`: the session can replay what it recorded."""
    return {
        **_prompts(session, device, decoder, record=record),
        **_decodes(session, device, decoder, record=record),
        **_draws(device, decoder.vocab_size),
    }


def _prompts(
    session: ort.InferenceSession, device: Device, decoder: DecoderSpec, *, record: bool
) -> dict[str, tuple[float, float]]:
    """Prompts, pieces, moves and a row of logits."""
    random = np.random.default_rng(261)

    def compute(start: int, count: int) -> None:
        tokens = random.integers(0, decoder.vocab_size, count).tolist()
        runner.prefill(0, start, [tokens], 0)

    found: dict[str, tuple[float, float]] = {}
    pool = _pool(device, decoder, _PROMPTS)
    with ExitStack() as closing:
        runner = DeviceRunner([Stage(session, pool)], decoder, _PROMPTS[1], None, record=record)
        closing.callback(runner.close)
        compute(0, _WARM)
        for length in LENGTHS:
            found[f"prompt of {length}"] = timed(partial(compute, 0, length))
        for start in PIECES:
            piece = f"piece of {_PIECE} from position {start}"
            found[piece] = timed(partial(compute, start, _PIECE))
        found[f"copy of a slot of {_HELD}"] = timed(partial(pool.move, Move(0, 1, _HELD)))
        swap = Move(0, 1, _HELD, exchange=True)
        found[f"exchange of two slots of {_HELD}"] = timed(partial(pool.move, swap))
        row = device.allocate(4 * decoder.vocab_size)
        closing.callback(device.release, row)
        logits = DeviceLogits(device, decoder.vocab_size, [row], [0])
        found["fetching a row of logits"] = timed(partial(logits.__getitem__, 0))
    return found


def _decodes(
    session: ort.InferenceSession, device: Device, decoder: DecoderSpec, *, record: bool
) -> dict[str, tuple[float, float]]:
    """Steps of several sequences, run as they are and, where that is possible, replayed."""
    found: dict[str, tuple[float, float]] = {}
    pool = _pool(device, decoder, _DECODES)
    slots, capacity = _DECODES
    with ExitStack() as closing:
        closing.callback(pool.close)
        buffers = StepBuffers(
            [device], decoder.vocab_size, tokens=slots, batch=slots, rows=slots, results=slots
        )
        closing.callback(buffers.close)
        for number, (streams, drafted) in enumerate(_SHAPES):
            binding = DeviceBinding(
                session, pool, buffers, decoder.vocab_size,
                first=0, batch=streams, recording=record,
            )  # fmt: skip
            width = 1 + drafted
            binding.aim(width, capacity, 0, rows=width)
            buffers.fill([[1] * width] * streams, [_HELD] * streams, rows=width)
            what = f"decoding {streams}" + (f" with {drafted} drafted" if drafted else "")
            found[f"{what}, as it is"] = timed(binding.run)
            if record:
                binding.record(number + 1)
                found[f"{what}, replayed"] = timed(binding.run)
    return found


def _draws(device: Device, vocab: int) -> dict[str, tuple[float, float]]:
    """Drawing a token of each of several rows, of logits that are all the same."""
    found: dict[str, tuple[float, float]] = {}
    provider: Provider = "cuda" if device.kind == "cuda" else "cpu"
    half = np.arange(vocab) % 2 == 0
    ways = {
        "drawing {}": Choice(SamplingParams()),
        "drawing {} by top_p and top_k": Choice(SamplingParams(top_p=0.9, top_k=50)),
        "drawing {} by a grammar": Choice(SamplingParams(), allowed=half),
        "choosing {} by a grammar": Choice(SamplingParams(temperature=0), allowed=half),
    }
    with ExitStack() as closing:
        draws = DeviceDraw(device, vocab, partial(open_small_session, provider=provider))
        closing.callback(draws.close)
        rows = device.allocate(4 * vocab * max(STREAMS))
        closing.callback(device.release, rows)
        for streams in STREAMS:
            addresses = [rows + 4 * vocab * row for row in range(streams)]
            for how, choice in ways.items():

                def draw(choice: Choice = choice, addresses: list[int] = addresses) -> None:
                    logits = DeviceLogits(device, vocab, addresses, [0] * len(addresses), draws)
                    logits.weigh(dict.fromkeys(range(len(addresses)), choice))
                    for number in range(len(addresses)):
                        row = logits.row(number)
                        assert row is not None
                        row.best() if choice.params.greedy else row.draw(0.5)

                found[how.format(streams)] = timed(draw)
    return found


def _pool(device: Device, decoder: DecoderSpec, size: tuple[int, int]) -> DevicePool:
    slots, capacity = size
    return DevicePool(
        decoder, CacheShape(slots, capacity, token_bytes(decoder, ITEM_BYTES)), device
    )


def timed(step: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of the first and of further runs."""
    spent = []
    for _ in range(1 + _AGAIN):
        start = time.perf_counter()
        step()
        spent.append(1000 * (time.perf_counter() - start))
    return spent[0], statistics.median(spent[1:])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
