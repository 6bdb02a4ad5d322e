"""A graph in stages computes what it computes whole; each stage has what it needs, and no more."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import Manifest, decode
from appliance.compiler import golden
from appliance.compiler.cutting import MOST_STAGES, Stage, _Flow, cut
from appliance.compiler.gpu_compile import Target, stages_of
from appliance.compiler.merging import merge_products
from appliance.errors import UnsupportedError
from appliance.pb import onnx_graph_pb2 as pb
from tests.checkpoint.conftest import build_unsigned
from tests.checkpoint.families import find_models
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.vision_checkpoints import write_qwen3_vl

PROCESSOR = Target("CPUExecutionProvider", "cpu")
MODELS = find_models()
FLOAT16 = 10
CHOOSING = {"MoE", "QMoE", "TopK"}
ORDINARY = ("qwen3", "qwen3-vl", "gemma3", "gemma4", "qwen3.5", "gpt-oss", "ministral3")
"""Sums in 16 and in 32 bits, images, heads that differ, running states, experts, scales of
positions."""
WHOLE = {"gemma4-small", "gemma4-with-others"}
"""Whose later layers read what earlier ones made."""
ON_A_GPU = sorted(MODELS.keys() - WHOLE - {*ORDINARY})
WRITERS: dict[str, Callable[[Path], Path]] = {
    **{name: model.write for name, model in MODELS.items()},
    "qwen3": write_qwen3,
    "qwen3-vl": write_qwen3_vl,
}


@pytest.fixture(
    params=[*ORDINARY, *(pytest.param(name, marks=pytest.mark.slow) for name in ON_A_GPU)]
)
def bundle(request: pytest.FixtureRequest, build_once: BuildOnce) -> Path:
    name: str = request.param

    def build(directory: Path) -> None:
        build_unsigned(WRITERS[name](directory / "checkpoint"), directory / "it", precision="fp16")

    return build_once(f"cutting-{name}", build) / "it"


def graph_of(bundle: Path) -> tuple[bytes, Path, Manifest]:
    """As it is compiled, and the folder of its weights."""
    manifest = decode((bundle / MANIFEST_NAME).read_bytes())
    variant = manifest.variant("cuda")
    assert variant is not None
    merged = merge_products((bundle / variant.path).read_bytes())
    return merged, bundle / variant.weights_folder, manifest


def test_stages_compute_what_the_whole_graph_computes(bundle: Path, tmp_path: Path) -> None:
    graph, weights, manifest = graph_of(bundle)
    spec = manifest.decoder
    assert spec is not None
    found = []
    everywhere = 1 + len(list(_Flow(pb.Model.FromString(graph).graph).places()))
    for count in (1, 2, 3, min(everywhere, MOST_STAGES)):
        folder = tmp_path / str(count)
        folder.mkdir()
        stages = stages_of(graph, weights, folder, [PROCESSOR] * count, spec)
        assert len({*folder.glob("*.onnx")}) == count
        found.append(golden.on_device(stages, stages, spec, [("cpu", 0)] * count))
    whole, *others = found
    chooses = CHOOSING & {node.op_type for node in pb.Model.FromString(graph).graph.node}
    for measured in others:
        # What is handed on is rounded to 16 bits, and within a stage the processor's is not always:
        # where experts or tokens are chosen, a few rows then have others.
        away = np.linalg.norm(measured - whole, axis=1) / np.linalg.norm(whole, axis=1)
        assert np.median(away) <= golden.BOUNDS["fp16"] / 2
        assert chooses or away.max() <= golden.BOUNDS["fp16"]


def test_each_layer_is_in_one_stage_and_nothing_is_lost(bundle: Path) -> None:
    graph, _, manifest = graph_of(bundle)
    whole = pb.Model.FromString(graph).graph
    for count in (2, 3):
        stages = cut(graph, count)
        parts = [pb.Model.FromString(stage.graph).graph for stage in stages]
        outputs = [entry.name for part in parts for entry in part.output]
        assert len(outputs) == len({*outputs})
        handed = {name for stage in stages for name in stage.handed}
        assert {*outputs} - handed == {entry.name for entry in whole.output}
        assert stages[-1].handed == ()
        read = {t.name for part in parts for t in part.initializer}
        assert read == {t.name for t in whole.initializer if t.name in read_in(whole)}
        for part in parts:
            own = {entry.name.replace("past", "present") for entry in part.input}
            made = {entry.name for entry in part.output if entry.name.startswith("present_")}
            assert made == {name for name in own if name.startswith("present_")}
    assert manifest.decoder is not None


def read_in(graph: pb.Graph) -> set[str]:
    return {name for node in graph.node for name in node.input}


def layered(weights: list[int], *, shared: bool = False) -> bytes:
    """A graph of layers that each add a product; `shared`: all read what the first one made."""
    graph = pb.Graph(name="layered")
    graph.input.append(_typed("input_ids", 7, "batch", "tokens"))
    graph.input.append(_typed("rows", 7, "rows"))
    graph.output.append(_typed("logits", 1, "rows", 1))
    _stored(graph, "table", 8)
    graph.node.append(pb.Node(op_type="Gather", input=["table", "input_ids"], output=["s.0"]))
    for layer, size in enumerate(weights):
        _stored(graph, f"w.{layer}", size)
        given = "m.0" if shared and layer else f"s.{layer}"
        product = pb.Node(op_type="MatMul", input=[given, f"w.{layer}"], output=[f"m.{layer}"])
        added = pb.Node(op_type="Add", input=[f"s.{layer}", f"m.{layer}"])
        added.output.append(f"s.{layer + 1}")
        graph.node.extend([product, added])
    last = pb.Node(op_type="Gather", input=[f"s.{len(weights)}", "rows"], output=["logits"])
    graph.node.append(last)
    return pb.Model(ir_version=10, graph=graph).SerializeToString()


def _typed(name: str, kind: int, *axes: str | int) -> pb.ValueInfo:
    entry = pb.ValueInfo(name=name)
    entry.type.tensor_type.elem_type = kind
    for axis in axes:
        entry.type.tensor_type.shape.dim.add(dim_param=str(axis))
    return entry


def _stored(graph: pb.Graph, name: str, size: int) -> None:
    tensor = graph.initializer.add(name=name, dims=[size], data_type=FLOAT16, data_location=1)
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)


@given(st.lists(st.integers(1, 100), min_size=8, max_size=40), st.integers(2, 6))
def test_no_stage_is_heavier_than_its_share_and_a_layer(weights: list[int], count: int) -> None:
    stages = cut(layered(weights), count)
    assert len(stages) == count
    total = sum(stage.weights for stage in stages)
    assert total == 8 + sum(weights)
    assert max(stage.weights for stage in stages) <= total / count + max(*weights, 8)
    assert all(stage.handed for stage in stages[:-1])


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.data())
def test_the_heaviest_stage_is_as_light_as_any_cut_makes_it(
    weights: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(2, min(4, len(weights))))
    parts = [8, *weights]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(weights)), min_size=count - 1)))[: count - 1]
    bounds = [0, *cuts, len(parts)]
    any_way = max(sum(parts[a:b]) for a, b in pairwise(bounds))
    assert max(stage.weights for stage in cut(layered(weights), count)) <= any_way


def test_stages_are_handed_one_tensor_between_layers() -> None:
    stages: list[Stage] = cut(layered([10, 10, 10, 10]), 2)
    assert [stage.handed for stage in stages] == [("s.2",), ()]


def test_a_graph_whose_layers_read_what_the_first_one_made_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="too few for 3 GPUs") as caught:
        cut(layered([10, 10, 10, 10], shared=True), 3)
    assert caught.value.code == "not_divisible"


def test_layers_that_read_others_keys_stay_in_the_stage_of_these(tmp_path: Path) -> None:
    checkpoint = MODELS["gemma4-small"].write(tmp_path / "checkpoint")
    build_unsigned(checkpoint, tmp_path / "it", precision="fp16")
    graph, _, _ = graph_of(tmp_path / "it")
    for count in (2, 3):
        stages = [pb.Model.FromString(stage.graph).graph for stage in cut(graph, count)]
        kinds = [{node.op_type for node in stage.node} for stage in stages]
        assert sum("GroupQueryAttention" in own for own in kinds) == 1
