"""The engine over TensorRT's published provider and stand-ins for TensorRT's libraries.

No kernel computes anything there, so no token means anything; but what the compiler left is opened,
bound and run by the provider's own code.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from appliance.compiler.hardware import has_driver
from tests.compiler.stand import FIT, SETTINGS, Stand, bundle_of, compile_it, in_json, planned

pytestmark = pytest.mark.skipif(has_driver(), reason="this machine has a GPU")

OPENED = """
import json, sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from appliance.bundle.manifest import decode
from appliance.compiler import profiles
from appliance.compiler.record import Fit
from appliance.config import EngineSettings
from appliance.engine.device import opened as opened_on_gpu
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.device.device import HostDevice
from appliance.engine.generation import Generation
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.output import Finished
from appliance.engine.sampling import SamplingParams
from appliance.engine.session import open_tensorrt_session
from appliance.engine.tokenizer import Tokenizer
from appliance.errors import UnsupportedError

bundle, out, fit = Path(sys.argv[1]), Path(sys.argv[2]), Fit(**json.loads(sys.argv[3]))
settings = EngineSettings(**json.loads(sys.argv[4])).sized(gpu=True)
profiles._SHORTEST = 64
sys.path.append(sys.argv[5])
manifest = decode((bundle / "bundle.json").read_bytes())
decoder = manifest.decoder

class StandIn(HostDevice):
    kind = "cuda"

device = StandIn(1 << 32)
artifact = SimpleNamespace(directory=out, record=SimpleNamespace(fit=fit))
budget = CacheBudget(1 << 30)
opened = opened_on_gpu.on_tensorrt(artifact, decoder, settings, budget, device, None)
slots, capacity = opened.shape.slots, opened.shape.capacity
engine = LLMEngine(
    opened.runner, Tokenizer((bundle / manifest.tokenizer).read_bytes()), manifest.prompting,
    vocab_size=decoder.vocab_size, slots=slots, capacity=capacity,
    token_budget=settings.token_budget, max_waiting=99,
)
for number in range(5):
    params = SamplingParams(temperature=number % 2, seed=number, max_tokens=20)
    engine.add(Generation(number, [1 + number, 2, 3] * (10 + 9 * number), params))
ends = Counter()
while engine.has_work:
    for output in engine.step():
        if isinstance(output.event, Finished):
            ends[output.call] = output.event.generated_tokens
engine.check_integrity()
opened.close()
given_back = device.free_bytes() == 1 << 32
print(json.dumps([dict(ends), slots, capacity, given_back]), flush=True)

plan = profiles.plan(profiles.sizes_for(decoder, settings, fit))
first, session = plan[0], open_tensorrt_session(out, plan[0].graph)
sizes = {"batch": 1, "tokens": first.tokens.most + 1, "rows": 1}
kinds = {"tensor(int64)": np.int64, "tensor(float16)": np.float16}
feeds = {
    entry.name: np.zeros([sizes.get(size, size) for size in entry.shape], kinds[entry.type])
    for entry in session.get_inputs()
}
try:
    session.run(None, feeds)
except Exception as error:
    print(str(error).splitlines()[0], flush=True)
(engine,) = out.glob(f"{first.name}_*.engine")
for spoil in (lambda: engine.write_bytes(b"of another release"), engine.unlink):
    spoil()
    try:
        open_tensorrt_session(out, first.graph)
    except UnsupportedError as error:
        print(error.message)
"""


def test_what_was_built_runs_elsewhere_and_nothing_is_built_there(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, manifest = bundle_of(stand, "qwen3", "fp16")
    moved = compile_it(stand, bundle, manifest).rename(stand.folder / "used")
    before = {path.name: path.read_bytes() for path in moved.iterdir()}
    stand.log.unlink()
    done = stand.run(OPENED, bundle, moved, in_json(FIT), in_json(asdict(SETTINGS)))
    assert done.returncode == 0, done.stderr
    said, outside, spoiled, missing = done.stdout.splitlines()
    assert json.loads(said) == [dict.fromkeys("01234", 20), 3, 256, True]
    assert not stand.asked("built") + stand.asked("asked") + stand.asked("parsed")
    assert len(stand.asked("opened")) == len(planned(manifest, monkeypatch)) + 1
    after = {path.name: path.read_bytes() for path in moved.iterdir()}
    assert after == {name: before[name] for name in after}
    assert len(after) == len(before) - 1, "the one that was taken away"
    assert not list((stand.folder / "elsewhere").iterdir())
    # An engine that cannot be loaded is an error, and neither is one built in its place.
    assert "could not deserialize engine" in spoiled
    assert ".engine" in missing
    # A shape that no engine was built for is an error, and neither is one built for it.
    assert "setInputShape() for input 'input_ids'" in outside
    assert stand.asked("outside") == ["outside input_ids 1x49"]
    runs = [bound(line) for line in stand.asked("run")]
    assert {run["input_ids"][0] for run in runs} > {"1x1", "2x1", "3x1"}, "and prompts' pieces"
    assert {run["past_key_0"][0].split("x")[2] for run in runs} == {"64", "256"}
    for run in runs:
        for name, place in run.items():
            if name.startswith("past_"):
                assert run[name.replace("past", "present")] == place, "one cache, in place"


def bound(line: str) -> dict[str, tuple[str, str]]:
    """Input or output -> its shape and address in a run."""
    parts = [word.partition("=") for word in line.split()[1:]]
    return {name: (said.partition("@")[0], said.partition("@")[2]) for name, _, said in parts}
