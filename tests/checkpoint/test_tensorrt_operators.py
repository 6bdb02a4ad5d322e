"""Every node and attribute of every graph for TensorRT is one that its parser takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from onnx import NodeProto, TensorProto, helper, shape_inference

from appliance.compiler.graph_check import STANDARD_OPERATORS
from installer.checkpoint.quantize import SCHEMES, Precision
from tests.checkpoint.conftest import BLIND, EXPERTS, MAIN, BuildBundle, Built, build_unsigned
from tests.checkpoint.tensorrt_operators import ACCEPTED, Input

GRADES: list[tuple[str, Precision]] = [(name, "fp32") for name in MAIN if name not in EXPERTS]
GRADES += [(name, "w8a8") for name in BLIND]
GRADES += [("qwen3", "w8a8"), ("qwen2", "w8a8"), ("llama", "w8a8"), ("qwen2-fp16", "fp16")]


def load(model: Built) -> onnx.ModelProto:
    """The graph with the types and shapes of all values in between."""
    graph = model.manifest.variant("trt")
    assert graph is not None
    proto = onnx.load(model.bundle / graph.path, load_external_data=False)
    return shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)


class Values:
    """What is known of each value of a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.types = {t.name: (t.data_type, len(t.dims)) for t in graph.initializer}
        self.constants = set(self.types)
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type, len(tensor.shape.dim)
        self.inputs = {value.name for value in graph.input}
        self.outputs = {value.name for value in graph.output}
        for node in graph.node:
            if all(name in self.constants for name in node.input):
                self.constants.update(node.output)


def complaints(model: onnx.ModelProto) -> Iterator[str]:
    """Whatever the parser would not take."""
    values = Values(model)
    for node in model.graph.node:
        accepted = ACCEPTED.get(node.op_type)
        if accepted is None or node.domain:
            yield f"{node.domain}::{node.op_type} is not on the list"
            continue
        least = len(accepted.inputs) if accepted.least is None else accepted.least
        # Concat has any number of inputs, which are all alike.
        given = node.input[:2] if node.op_type == "Concat" else node.input
        if not least <= len(given) <= len(accepted.inputs) or "" in given:
            yield f"{node.name} has the inputs {list(given)}"
            continue
        for name, wanted in zip(given, accepted.inputs, strict=False):
            if complaint := mismatch(values, name, wanted):
                yield f"{node.name}: {complaint}"
        if len({values.types[given[i]][0] for i in accepted.same if i < len(given)}) > 1:
            yield f"{node.name} mixes types"
        if accepted.outputs not in (None, len(node.output)):
            yield f"{node.name} has {len(node.output)} outputs"
        if accepted.outside and node.output[0] not in values.outputs:
            yield f"{node.name}'s output is not the graph's"
        for attribute in node.attribute:
            taken = accepted.attributes.get(attribute.name)
            if taken is None or not taken(attribute):
                yield f"{node.name} has {helper.printable_attribute(attribute)}"


def mismatch(values: Values, name: str, wanted: Input) -> str | None:
    kind, rank = values.types[name]
    if kind not in wanted.types:
        return f"{name} is {TensorProto.DataType.Name(kind)}"
    if wanted.rank not in (None, rank):
        return f"{name} has {rank} dimensions"
    if wanted.constant and name not in values.constants:
        return f"{name} is not constant"
    if wanted.outside and name not in values.inputs:
        return f"{name} is not an input of the graph"
    return None


@pytest.mark.parametrize(("name", "precision"), GRADES)
def test_the_parser_takes_every_node(built: BuildBundle, name: str, precision: Precision) -> None:
    assert list(complaints(load(built(name, precision)))) == []


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 33_000), ("w8a8", 17_000)])
def test_the_parser_takes_tables_in_parts(
    built: BuildBundle, tmp_path: Path, precision: Precision, limit: int
) -> None:
    checkpoint = built("qwen3", "fp32").checkpoint
    build_unsigned(checkpoint, tmp_path / "it", precision=precision, max_file_bytes=limit)
    model = load(Built(checkpoint, tmp_path / "it"))
    assert {"Concat", "Split"} <= {node.op_type for node in model.graph.node}
    assert list(complaints(model)) == []


def test_the_list_has_what_the_builder_writes_and_no_more() -> None:
    assert {name for _, name in STANDARD_OPERATORS} == set(ACCEPTED)
    for (_, name), attributes in STANDARD_OPERATORS.items():
        assert attributes <= ACCEPTED[name].attributes.keys()
    assert all(accepted.sources for accepted in ACCEPTED.values())


CHANGES: dict[str, tuple[str, NodeProto]] = {
    "an operator that it does not know": (
        "Unique is not on",
        helper.make_node("Unique", ["logits"], ["x"]),
    ),
    "an operator of another domain": (
        "Gelu is not on",
        helper.make_node("Gelu", ["logits"], ["x"], domain="com.microsoft"),
    ),
    "a mode that it does not know": (
        "mode",
        helper.make_node("TensorScatter", ["past_key_0", "past_key_0"], ["x"], mode="circular"),
    ),
    "a mask of integers": (
        "starts is INT64",
        helper.make_node("Attention", ["past_key_0"] * 3 + ["starts"], ["x"]),
    ),
    "an attribute that it refuses": (
        "softcap",
        helper.make_node("Attention", ["past_key_0"] * 3, ["x"], softcap=2.0),
    ),
    "8-bit integers looked up": (
        "INT8",
        helper.make_node("Gather", ["model.embed_tokens.weight.integers", "rows"], ["x"]),
    ),
    "an empty input": ("has the inputs", helper.make_node("Gemm", ["logits", "logits", ""], ["x"])),
    "types that differ": ("mixes", helper.make_node("Mul", ["logits", "past_key_0"], ["x"])),
    "axes of the moment": (
        "rows is not constant",
        helper.make_node("Squeeze", ["logits", "rows"], ["x"]),
    ),
    "a cache in between": (
        "not an input of the graph",
        helper.make_node("TensorScatter", ["present_key_0", "past_key_0", "starts"], ["x"]),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_check_would_find(built: BuildBundle, name: str) -> None:
    model = load(built("qwen3", "w8a8"))
    said, node = CHANGES[name]
    node.name = f"the {node.op_type}"
    model.graph.node.append(node)
    found = list(complaints(model))
    assert any(said in complaint for complaint in found), found


@pytest.mark.parametrize("precision", list(SCHEMES))
def test_grades_with_zero_points_have_no_graph_for_tensorrt(
    built: BuildBundle, precision: Precision
) -> None:
    graph = built("qwen3", precision).manifest.variant("trt")
    assert (graph is None) == (precision in {"int4", "int8", "w4a8"})


def test_the_capacity_can_be_fixed_when_the_graph_is_opened(built: BuildBundle) -> None:
    # KVCacheUpdate wants it known when the engine is built: one engine for each capacity.
    model = built("qwen3", "w8a8")
    graph = model.manifest.variant("trt")
    assert graph is not None
    options = ort.SessionOptions()
    options.add_free_dimension_override_by_name("capacity", 96)
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path",
        str(model.bundle / graph.weights_folder),
    )
    data = (model.bundle / graph.path).read_bytes()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    spec = model.spec
    slots = [e for e in session.get_inputs() if e.name.startswith("past_")]
    slots += [e for e in session.get_outputs() if e.name.startswith("present_")]
    assert len(slots) == 4 * spec.layers
    assert {tuple(e.shape) for e in slots} == {("batch", spec.kv_heads, 96, spec.head_dim)}
