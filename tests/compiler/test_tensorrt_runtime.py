"""The published TensorRT provider over stand-ins for TensorRT's and CUDA's libraries.

No kernel computes anything there, so no number means anything, and what TensorRT itself would say
to a graph is not seen. But the options, the one piece of graph that is handed on, the shapes that
an engine is built for, the files and every binding are the provider's own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import onnx
import pytest
from onnx import shape_inference

from appliance.bundle.manifest import Manifest, decode
from appliance.compiler.hardware import has_driver
from appliance.compiler.profiles import Profile, Sizes, plan, sizes_for
from appliance.compiler.record import Fit
from appliance.compiler.work import is_engine_file
from appliance.config import EngineSettings
from installer.checkpoint import build_bundle
from installer.checkpoint.quantize import Precision
from tests.checkpoint.families import find_models
from tests.checkpoint.test_tensorrt_operators import complaints
from tests.compiler.conftest import RUNTIME
from tests.fakes.checkpoints import write_llama, write_qwen2, write_qwen3
from tests.fakes.no_tensorrt import write_libraries

pytestmark = pytest.mark.skipif(has_driver(), reason="this machine has a GPU")

WRITERS = {name: model.write for name, model in find_models().items()}
WRITERS |= {"qwen3": write_qwen3, "qwen2": write_qwen2, "llama": write_llama}
GRADES: list[tuple[str, Precision]] = [
    *(("qwen3", "w8a8"), ("qwen3", "fp16"), ("qwen3", "fp8"), ("qwen3", "fp32")),
    *(("qwen2", "w8a8"), ("llama", "w8a8"), ("llama-longrope", "fp16"), ("mistral", "w8a8")),
    *(("gemma3", "fp16"), ("phi3", "w8a8"), ("phi4-mini", "w8a8"), ("mimo", "fp8")),
    *(("qwen2-late-windows", "fp8"), ("llama-vocabulary-of-499", "w8a8")),
]

FIT = Fit(precision="fp16", weights=200, slot=0, memory=20_000)
"""Room for a hundred engines."""
SETTINGS = EngineSettings(max_sequences=3, token_budget=48, max_context=256)

COMPILED = """
import json, sys
from pathlib import Path
import numpy as np
from appliance.bundle.manifest import decode
from appliance.compiler import folding, libraries, profiles
from appliance.compiler.trt_compile import compile_tensorrt
from appliance.errors import ApplianceError

bundle, out, sizes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
profiles._SHORTEST = 64  # so that a tiny model has caches of several lengths
folding.MOST_INSIDE = 0  # and weights like a large one's
manifest = decode((bundle / "bundle.json").read_bytes())
plan = profiles.plan(profiles.Sizes(**sizes))
sys.path.append(sys.argv[4])
found = libraries.read_libraries()
assert (found.tensorrt, found.missing_cuda, found.missing_tensorrt) == ("10.16.1", "", ""), found
expected = np.ones((12, manifest.decoder.vocab_size), np.float32)
try:
    compile_tensorrt(bundle, manifest, out, expected, plan)
except ApplianceError as error:
    print(json.dumps([error.code, error.message]))
"""

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
from appliance.engine import opened_on_gpu
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.device import HostDevice
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

OPTIONS = """
import sys
import onnxruntime as ort
from appliance.compiler import libraries

sys.path.append(sys.argv[3])
libraries.preload()
options = ort.SessionOptions()
options.log_severity_level = 4
name, _, value = sys.argv[2].partition("=")
target = [("TensorrtExecutionProvider", {name: value})]
ort.InferenceSession(sys.argv[1], options, providers=target, enable_fallback=0)
"""


@dataclass(frozen=True)
class Stand:
    """A machine with stand-ins: a fresh folder to work in, and what was asked of them."""

    python: Path
    libraries: Path
    folder: Path

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        here = {"LD_LIBRARY_PATH": self.libraries, "STAND_IN_LOG": self.log}
        return subprocess.run(
            [self.python, "-I", "-c", program, *map(str, arguments), str(self.libraries)],
            env=os.environ | {k: str(v) for k, v in here.items()} | {"STAND_IN_MODELS": "../given"},
            cwd=self.folder / "elsewhere",
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def asked(self, word: str) -> list[str]:
        """What the stand-ins were asked for, of one kind, since the last look at all."""
        return [line for line in self.log.read_text().splitlines() if line.split()[0] == word]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorrt")
    write_libraries(RUNTIME / "onnxruntime/capi", folder)
    return folder


@pytest.fixture
def stand(on_gpu: Path, libraries: Path, tmp_path: Path) -> Stand:
    for name in ("elsewhere", "given", "out"):
        (tmp_path / name).mkdir()
    return Stand(on_gpu, libraries, tmp_path)


def in_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def sizes(manifest: Manifest) -> Sizes:
    """As the node reckons them, for the compiler and for the engine."""
    assert manifest.decoder is not None
    return sizes_for(manifest.decoder, SETTINGS, FIT)


def planned(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> tuple[Profile, ...]:
    monkeypatch.setattr("appliance.compiler.profiles._SHORTEST", 64)
    return plan(sizes(manifest))


def bundle_of(stand: Stand, family: str, precision: Precision) -> tuple[Path, Manifest]:
    checkpoint, bundle = WRITERS[family](stand.folder / "checkpoint"), stand.folder / "bundle"
    build_bundle(checkpoint, bundle, name="it", version="1", signer=None, precision=precision)
    return bundle, decode((bundle / "bundle.json").read_bytes())


def compile_it(stand: Stand, bundle: Path, manifest: Manifest) -> Path:
    """The artifact's folder, once the golden prompt was computed with what was built."""
    out = stand.folder / "out"
    done = stand.run(COMPILED, bundle, out, in_json(sizes(manifest)))
    assert done.returncode == 0, done.stderr
    # Nothing is computed, so only the comparison can fail: all that comes before it was done.
    assert json.loads(done.stdout)[0] == "golden_differs", done.stdout
    return out


def shapes(engine: str) -> dict[str, list[str]]:
    """Input -> least, usual and greatest shape, out of the text that stands for an engine."""
    lines = [line.split() for line in engine.splitlines()]
    return {words[1]: words[2:] for words in lines if words[0] == "profile"}


def options(profile: Profile, manifest: Manifest) -> dict[str, list[str]]:
    assert manifest.decoder is not None
    named = profile.options(manifest.decoder)
    parts = [named[f"trt_profile_{word}_shapes"].split(",") for word in ("min", "opt", "max")]
    return {
        entry[0].partition(":")[0]: [part.partition(":")[2] for part in entry]
        for entry in zip(*parts, strict=True)
    }


@pytest.mark.parametrize(("family", "precision"), GRADES)
def test_each_planned_engine_is_built_of_the_whole_graph(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, family: str, precision: Precision
) -> None:
    bundle, manifest = bundle_of(stand, family, precision)
    out, profiles = compile_it(stand, bundle, manifest), planned(manifest, monkeypatch)
    assert len(stand.asked("built")) == len(profiles)
    named = set()
    for profile in profiles:
        (node,) = (graph := onnx.load(out / profile.graph).graph).node
        assert node.op_type == "EPContext"
        assert list(node.input) == [entry.name for entry in graph.input]
        (engine,) = [a.s.decode() for a in node.attribute if a.name == "ep_cache_context"]
        assert Path(engine).name == engine, "found from wherever the folder is"
        assert shapes((out / engine).read_text()) == options(profile, manifest)
        named |= {profile.graph, engine, Path(engine).with_suffix(".profile").name}
    written = {path.name for path in out.iterdir()}
    assert written - named == {"TensorrtExecutionProvider_cache_sm90.timing"}
    assert named <= written
    assert all(map(is_engine_file, written)), "the node keeps these alone"
    assert not list((stand.folder / "elsewhere").iterdir()), "nothing where the process works"


@pytest.mark.parametrize(("family", "precision"), GRADES)
def test_after_onnx_runtimes_own_optimizations_the_parser_takes_every_node(
    stand: Stand, family: str, precision: Precision
) -> None:
    compile_it(stand, *bundle_of(stand, family, precision))
    for name in ("asked", "parsed"):
        given = onnx.load(stand.folder / "given" / f"{name}.onnx", load_external_data=False)
        typed = shape_inference.infer_shapes(given, check_type=True, data_prop=True)
        if name == "parsed":
            assert list(complaints(typed)) == []
            assert list(made_to_shapes(given.graph)) == []
        operators = {node.op_type for node in given.graph.node}
        assert "DequantizeLinear" not in operators, "weights have 16 bits (decision 0269)"
    # Else the parser would have said no: the weights beside the graph are where it looks.
    for line in stand.asked("parsed"):
        inside = re.fullmatch(r"parsed \d+ nodes, (\d+) bytes of weights inside", line)
        assert inside is not None
        assert int(inside[1]) < 4096, "a protobuf holds less than 2 GB"


SHAPES = {"Reshape": 1, "Expand": 1, "Tile": 1, "Unsqueeze": 1, "Squeeze": 1, "Split": 1}
"""Operators whose input of that number, and all that follow, say a shape."""
SHAPES |= {"Slice": 1, "Range": 0, "ConstantOfShape": 0}


def made_to_shapes(graph: onnx.GraphProto) -> Iterator[str]:
    """Nodes that make a shape of an input's numbers, for which a profile needs numbers, too."""
    numbers = {entry.name for entry in graph.input}
    for node in graph.node:
        if node.op_type == "Shape":
            continue
        if numbers.intersection(node.input[SHAPES.get(node.op_type, len(node.input)) :]):
            yield node.name
        if numbers.intersection(node.input):
            numbers.update(node.output)


def test_the_provider_leaves_types_to_tensorrt_which_is_told_that_16_bits_will_do(
    stand: Stand,
) -> None:
    # From 1.27 on, with TensorRT 10 (pull request 29779 there). Once a release obeys the graph's
    # types again, the networks have flag 2, and ours has to go, because it forbids that.
    compile_it(stand, *bundle_of(stand, "qwen3", "fp16"))
    assert set(stand.asked("network")) == {"network 0"}
    assert set(stand.asked("flag")) == {"flag 0"}, "16-bit floats"


@pytest.mark.parametrize(
    "option",
    [
        "trt_engine_cache_enable=1",
        "trt_engine_cache_path=",
        "trt_load_user_initializer=True",
        "trt_something=True",
    ],
)
def test_options_that_do_not_reach_the_provider_are_refused(
    stand: Stand, decoder_bundle: Path, option: str
) -> None:
    done = stand.run(OPTIONS, decoder_bundle / "graph/trt/model.onnx", option)
    assert done.returncode != 0
    assert option.partition("=")[0] in done.stderr


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
