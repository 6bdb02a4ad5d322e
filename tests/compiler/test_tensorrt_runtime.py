"""The published TensorRT provider over stand-ins for TensorRT's and CUDA's libraries.

No kernel computes anything there, so no number means anything, and what TensorRT itself would say
to a graph is not seen. But the options, the one piece of graph that is handed on, the shapes that
an engine is built for, the files and every binding are the provider's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import shape_inference

from appliance.bundle.manifest import Manifest
from appliance.compiler.hardware import has_driver
from appliance.compiler.profiles import Profile
from appliance.compiler.work import is_engine_file
from installer.checkpoint.quantize import Precision
from tests.checkpoint.test_tensorrt_operators import complaints
from tests.compiler.stand import Stand, bundle_of, compile_it, planned

pytestmark = pytest.mark.skipif(has_driver(), reason="this machine has a GPU")

GRADES: list[tuple[str, Precision]] = [
    *(("qwen3", "w8a8"), ("qwen3", "fp16"), ("qwen3", "fp8"), ("qwen3", "fp32")),
    *(("qwen2", "w8a8"), ("llama", "w8a8"), ("llama-longrope", "fp16"), ("mistral", "w8a8")),
    *(("gemma3", "fp16"), ("phi3", "w8a8"), ("phi4-mini", "w8a8"), ("mimo", "fp8")),
    *(("qwen2-late-windows", "fp8"), ("llama-vocabulary-of-499", "w8a8")),
    *(("apertus", "fp16"), ("glm4", "w8a8"), ("granite", "fp8"), ("ministral3", "w8a8")),
    *(("cohere2", "w8a8"), ("olmo3", "fp16"), ("smollm3", "w8a8")),
]
OF_A_KIND = {"qwen3", "llama-longrope", "gemma3", "phi3", "mimo", "qwen2-late-windows", "glm4"}
"""Families that differ in what TensorRT could refuse; the full run has all."""
SAMPLED = [
    pytest.param(*grade, marks=() if grade[0] in OF_A_KIND else pytest.mark.slow)
    for grade in GRADES
]

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


@pytest.mark.parametrize(("family", "precision"), SAMPLED)
def test_each_planned_engine_is_built_of_the_whole_graph_every_node_of_which_the_parser_takes(
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
    assert_the_parser_takes_every_node(stand)


def assert_the_parser_takes_every_node(stand: Stand) -> None:
    """After ONNX Runtime's own optimizations."""
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
