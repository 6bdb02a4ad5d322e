"""The engine over the published CUDA provider and stand-ins for CUDA's libraries.

No kernel computes anything there, so no token means anything; but every binding, copy, recording
and replay is the provider's own, and each sequence must come to its end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.compiler.hardware import has_driver
from installer.checkpoint import build_bundle
from installer.checkpoint.quantize import Precision
from tests.checkpoint.drawn import draw_checkpoint
from tests.checkpoint.families import find_models
from tests.checkpoint.families.gemma4 import WIDE
from tests.fakes.checkpoints import write_llama, write_qwen3
from tests.fakes.vision_checkpoints import write_qwen2_5_vl, write_qwen3_vl
from tests.sweeps import rarely

pytestmark = pytest.mark.skipif(has_driver(), reason="this machine has a GPU")

OPENED = """
import json, sys
from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path
import numpy as np
from appliance.bundle.manifest import decode
from appliance.bundle.specs import VisionSpec
from appliance.compiler import gpu_compile
from appliance.compiler.artifact import of_stage
from appliance.compiler.grid import Grid
from appliance.compiler.merging import merge_products
from appliance.compiler.sources import verified_graph, verified_weights
from appliance.engine.cache_budget import SNAPSHOTS, CacheShape, state_bytes, token_bytes
from appliance.engine.device.device import HostDevice
from appliance.engine.device.draw import DeviceDraw
from appliance.engine.device.pool import ITEM_BYTES, DevicePool
from appliance.engine.device.runner import DeviceRunner
from appliance.engine.device.stages import Stage, layers_of
from appliance.engine.generation import Generation
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.output import Finished
from appliance.engine.sampling import SamplingParams
from appliance.engine.session import open_cuda_session, open_small_session
from appliance.engine.tokenizer import Tokenizer
from appliance.engine.vision.sight import Placed, Sight, expanded

bundle, out = Path(sys.argv[1]), Path(sys.argv[2])
manifest = decode((bundle / "bundle.json").read_bytes())
decoder, graph = manifest.decoder, manifest.variant("cuda")
gpu_compile.quiet()
data = verified_graph(bundle, manifest, graph.path, verified_weights(bundle, manifest))
merged = merge_products(data)
numbers = [*map(int, sys.argv[3].split(","))]
folder = bundle / graph.weights_folder
if len(numbers) == 1:
    gpu_compile.optimize(merged, folder, out, gpu_compile.CUDA)
else:
    targets = gpu_compile.cuda_targets(len(numbers), manifest.spec)
    gpu_compile.stages_of(merged, folder, out, targets, decoder)

class StandIn(HostDevice):
    kind = "cuda"

memory = 1 << 30
sizes = token_bytes(decoder, ITEM_BYTES), state_bytes(decoder)
stages = []
for stage, number in enumerate(numbers):
    device = StandIn(memory)
    device.number = number
    session = open_cuda_session(
        out, of_stage("model.onnx", stage), record=True, gpu=number, head_dim=decoder.head_dim
    )
    shape = CacheShape(4, 256, *sizes)
    stages.append(Stage(session, DevicePool(decoder, shape, device, layers_of(session))))
open_graph = partial(open_small_session, provider="cuda", gpu=device.number)
draws = DeviceDraw(device, decoder.vocab_size, open_graph)
runner = DeviceRunner(stages, decoder, 64, draws, record=True, record_drafts=True)
runner.warm_up()
engine = LLMEngine(
    runner, Tokenizer((bundle / manifest.tokenizer).read_bytes()), manifest.prompting,
    vocab_size=decoder.vocab_size, slots=4, capacity=256, token_budget=64, max_waiting=99,
    draft_tokens=8, clock=count(1.0).__next__,
    snapshots=SNAPSHOTS if decoder.recurrent else 0,
)
"""
VARIOUS = (
    OPENED
    + """
wanted = [
    SamplingParams(temperature=0, max_tokens=20),
    SamplingParams(seed=1, max_tokens=20),
    SamplingParams(seed=2, top_p=0.9, max_tokens=20),
    SamplingParams(temperature=0, logprobs=2, max_tokens=20),
    SamplingParams(temperature=0, max_tokens=9),
    SamplingParams(temperature=0, repetition_penalty=1.3, max_tokens=9),
    SamplingParams(seed=3, logit_bias={5: 2.0}, max_tokens=9),
]
for number, params in enumerate(wanted):
    prompt, sight = [1 + number, 2, 3] * (10 + 7 * number), None
    if isinstance(manifest.vision, VisionSpec) and number % 2:
        grid, token = Grid(4, 5), manifest.vision.image_token
        prompt, (start,) = expanded([*prompt, token, 7], token, [grid])
        inputs = stages[0].session.get_inputs()
        levels, _, width = next(e.shape for e in inputs if e.name == "features")
        features = np.ones((levels, grid.tokens, width), np.float32)
        sight = Sight(len(prompt), token, [Placed(start, grid, (1 << 128) + number, features)])
    engine.add(Generation(number, prompt, params, sight=sight))
ends = Counter()
while engine.has_work:
    for output in engine.step():
        if isinstance(output.event, Finished):
            ends[output.call] = output.event.generated_tokens
engine.check_integrity()
recorded = runner._steps.recorded
runner.close()
free = {stage.pool.device.free_bytes() for stage in stages}
print(json.dumps([dict(ends), recorded, free == {memory}]))
"""
)
DRAFTED = (
    OPENED
    + """
from appliance.engine.guessing.drafting import Prediction

said = []
for number in range(3):
    params = SamplingParams(temperature=0, max_tokens=100)
    guess = Prediction(list(said)) if said else None
    engine.add(Generation(number, [1, 2, 3], params, prediction=guess))
    said = []
    while engine.has_work:
        for output in engine.step():
            if not isinstance(output.event, Finished):
                said += output.event.token_ids
widths = {kind.width for kind, times in runner._steps._ran.items() if times >= 3}
accepted = engine.counters.accepted_tokens
print(json.dumps([len(said), accepted, sorted(widths), runner._steps.recorded]))
"""
)
BESIDE = (
    OPENED
    + """
from itertools import count
from threading import Event, Thread

begun, ended, opened = Event(), Event(), []

def load_others():
    while not ended.is_set():
        opened.append(open_cuda_session(out, record=True))
        begun.set()

def generate():
    begun.wait()
    while engine.has_work or (len(opened) < 4 and not ended.is_set()):
        if not engine.has_work:
            add()
        for output in engine.step():
            if isinstance(output.event, Finished):
                reasons.append(output.event.reason.name)

reasons, raised = [], []

def held(of):
    try:
        of()
    except Exception as error:
        raised.append(str(error))
    finally:
        begun.set()
        ended.set()

numbers = count()

def add():
    for tokens in (20, 25, 30, 35):
        params = SamplingParams(temperature=0, max_tokens=tokens)
        engine.add(Generation(next(numbers), [1, 2, 3], params))

add()
threads = [Thread(target=held, args=(of,)) for of in (load_others, generate)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps([raised, reasons, len(opened), runner._steps.recorded]))
"""
)
ADAPTED = (
    OPENED
    + """
from appliance.engine.adapters.bank import AdapterBank, AdapterWeights

def weights(digest, rank):
    room, layers = graph.adapted.targets, range(decoder.layers)
    some = lambda width: np.full((rank, width), 0.01, np.float32)
    downs = {(layer, t.name): some(t.inner) for layer in layers for t in room}
    ups = {(layer, t.name): some(t.outer) for layer in layers for t in room}
    return AdapterWeights(digest, rank, downs, ups)

def adopt(*adapters):
    bank = AdapterBank(decoder.layers, graph.adapted.targets, adapters)
    engine.between_steps(runner.prepare(bank).adopt)

ends, counts = Counter(), []
loaded = device.free_bytes()
for adapters in ([weights("a", 4)], [weights("a", 4), weights("b", 8)], []):
    adopt(*adapters)
    names = ["", *(adapter.digest for adapter in adapters)]
    for number in range(6):
        params = SamplingParams(temperature=0, max_tokens=12 + number)
        name = names[number % len(names)]
        engine.add(Generation(number, [1, 2, 3] * (1 + number), params, adapter=name))
    while engine.has_work:
        for output in engine.step():
            if isinstance(output.event, Finished):
                ends[output.call] += output.event.generated_tokens
    counts.append(runner._steps.recorded)
engine.check_integrity()
same = device.free_bytes() == loaded
runner.close()
print(json.dumps([dict(ends), counts, same, device.free_bytes() == memory]))
"""
)


def write_gemma4(directory: Path) -> Path:
    return draw_checkpoint(directory, WIDE)


WRITERS = [write_llama, write_qwen3_vl, find_models()["qwen3.5"].write, write_gemma4]
LESS_OFTEN = [write_qwen3, write_qwen2_5_vl, find_models()["nemotron-h"].write]
LESS_OFTEN += [find_models()["gemma4-small"].write]


@pytest.mark.parametrize("write", [*WRITERS, *rarely(LESS_OFTEN)])
def test_every_sequence_comes_to_its_end_by_recorded_steps(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    (ends, recorded, all_given_back), _ = _ran(VARIOUS, write, on_gpu, cuda_libraries, tmp_path)
    assert ends == {"0": 20, "1": 20, "2": 20, "3": 20, "4": 9, "5": 9, "6": 9}
    assert recorded >= 2
    assert all_given_back


def test_steps_of_several_tokens_of_a_sequence_are_recorded_too(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path
) -> None:
    (said, accepted, widths, recorded), _ = _ran(
        DRAFTED, write_qwen3, on_gpu, cuda_libraries, tmp_path
    )
    assert said == 100
    assert accepted > 100
    assert widths[-1] > 1
    assert recorded >= len(widths)


def test_a_model_records_its_steps_while_others_are_loaded(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path
) -> None:
    (raised, reasons, opened, recorded), _ = _ran(
        BESIDE, write_qwen3, on_gpu, cuda_libraries, tmp_path
    )
    assert raised == []
    assert len(reasons) >= 4
    assert set(reasons) == {"LENGTH"}
    assert opened >= 4
    assert recorded >= 2


def test_a_model_that_is_loaded_on_another_gpu_has_its_memory_there(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path
) -> None:
    (ends, recorded, all_given_back), taken = _ran(
        VARIOUS, write_qwen3, on_gpu, cuda_libraries, tmp_path, gpus="1"
    )
    assert sum(ends.values()) == 107
    assert recorded >= 2
    assert all_given_back
    assert taken[1] > (tmp_path / "out/weights.bin").stat().st_size
    # Optimizing, before, was on the first.
    assert taken[0] < taken[1]


@pytest.mark.parametrize(
    "write",
    [
        write_qwen3,
        pytest.param(write_qwen3_vl, marks=pytest.mark.slow),
        pytest.param(find_models()["qwen3.5"].write, marks=pytest.mark.slow),
        pytest.param(write_gemma4, marks=pytest.mark.slow),
    ],
)
def test_a_model_in_stages_takes_its_share_of_each_gpu_and_records_on_each(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    (ends, recorded, all_given_back), taken = _ran(
        VARIOUS, write, on_gpu, cuda_libraries, tmp_path, gpus="0,1"
    )
    assert sum(ends.values()) == 107
    assert recorded >= 2
    assert all_given_back
    weights = [
        (tmp_path / "out" / name).stat().st_size for name in ("weights.bin", "weights-2.bin")
    ]
    assert all(size > own for size, own in zip(taken, weights, strict=True))


@pytest.mark.parametrize("precision", ["fp16", "w8a8"])
def test_steps_are_recorded_anew_when_adapters_come_and_go(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path, precision: Precision
) -> None:
    (ends, recorded, as_before, all_given_back), _ = _ran(
        ADAPTED, write_qwen3, on_gpu, cuda_libraries, tmp_path, precision=precision, adapters=True
    )
    assert ends == {str(number): 3 * (12 + number) for number in range(6)}
    assert 0 < recorded[0] < recorded[1] < recorded[2]
    assert as_before
    assert all_given_back


def _ran(
    program: str,
    write: Callable[[Path], Path],
    on_gpu: Path,
    cuda_libraries: Path,
    tmp_path: Path,
    *,
    gpus: str = "0",
    precision: Precision = "fp16",
    adapters: bool = False,
) -> tuple[list[Any], list[int]]:
    """What `program` prints of the engine over a model of the checkpoint that `write` writes, and
    how much it took of each device.
    """
    bundle = tmp_path / "bundle"
    build_bundle(
        write(tmp_path / "checkpoint"), bundle, name="it", version="1", signer=None,
        precision=precision, adapters=adapters,
    )  # fmt: skip
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [on_gpu, "-I", "-c", program, bundle, tmp_path / "out", gpus],
        env=os.environ | {"LD_LIBRARY_PATH": str(cuda_libraries)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return printed, [int(taken) for taken in re.findall(r"taken of device \d: (\d+)", done.stderr)]
