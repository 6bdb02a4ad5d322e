"""Graphs whose products are widened one at a time compute what they computed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from appliance.compiler.probe import run_probe
from appliance.pb import onnx_graph_pb2 as pb
from installer.checkpoint.one_expert import one_expert_at_a_time
from installer.checkpoint.probe import open_graph
from installer.checkpoint.quantize import Precision
from installer.checkpoint.widening import spell_out, widen_products
from tests.checkpoint.conftest import BuildBundle

PLAIN: list[tuple[str, Precision]] = [("qwen3", "w8a8"), ("llama", "fp32")]
READERS = ["bert", "cross-encoder", "qwen3-embedding", "modernbert", "mpnet", "embedding-gemma"]
GRADES: list[Precision] = ["fp32", "int8"]


@pytest.mark.parametrize(
    ("name", "precision", "variant"),
    [
        *((name, kind, way) for name, kind in PLAIN for way in ("cuda", "trt")),
        ("qwen3-moe", "fp32", "cuda"),  # its router has 32 bits already
        ("qwen2", "fp32", "cuda"),  # with biases
        ("gpt-oss", "fp16", "cuda"),  # with biases of experts
        *((name, kind, "cuda") for name in READERS for kind in GRADES),
    ],
)
def test_the_numbers_are_those_of_the_graph_as_it_is(
    built: BuildBundle, name: str, precision: Precision, variant: str
) -> None:
    model = built(name, precision)
    graph = model.manifest.variant(variant)
    assert graph is not None
    weights = model.bundle / graph.weights_folder
    data = (model.bundle / graph.path).read_bytes()
    assert widen_products(data) != data
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(weights)
    )
    plain = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    widened = open_graph(model.bundle / graph.path, weights)
    spec = model.manifest.spec
    for one, other in zip(run_probe(plain, spec), run_probe(widened, spec), strict=True):
        assert one.dtype == other.dtype
        # Left to itself the runtime drops pairs of conversions, and with them a rounding.
        assert np.allclose(one.astype(np.float32), other.astype(np.float32), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("precision", "makes", "needs"),
    [("fp16", "DequantizeLinear", "MatMul"), ("int8", "BitwiseXor", "MatMulNBits")],
)
def test_a_weight_is_made_when_its_product_needs_it_and_not_before(
    built: BuildBundle, tmp_path: Path, precision: str, makes: str, needs: str
) -> None:
    model = built("qwen3", "w8a8")
    graph = next(
        graph
        for graph in model.manifest.graphs
        if (graph.variant, graph.precision) == ("cuda", precision)
    )
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "run")
    session = open_graph(model.bundle / graph.path, model.bundle / graph.weights_folder, options)
    run_probe(session, model.spec)
    events = json.loads(Path(session.end_profiling()).read_text())
    waiting = most = 0
    for event in events:
        if event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            waiting += (operator == makes) - (operator == needs)
            most = max(most, waiting)
    # The table of tokens has no product, and the run is one of two.
    assert 0 < most <= 3


@pytest.mark.parametrize("name", ["qwen3", "qwen2"])
def test_products_of_8_bit_floats_are_spelled_out_as_the_graph_of_floats_says_them(
    built: BuildBundle, name: str
) -> None:
    model = built(name, "fp8")
    wide, compact = model.manifest.variants("cuda")
    weights = model.bundle / wide.weights_folder
    runs = [
        run_probe(open_graph(model.bundle / graph.path, weights), model.spec)
        for graph in (wide, compact)
    ]
    for one, other in zip(*runs, strict=True):
        assert (one == other).all()
    data = (model.bundle / compact.path).read_bytes()
    kinds = [
        {node.op_type for node in pb.Model.FromString(graph).graph.node}
        for graph in (data, spell_out(data))
    ]
    assert kinds[0] - kinds[1] == {"MatMulBlockQuantizedFp8Weight"}
    plain = (model.bundle / wide.path).read_bytes()
    assert spell_out(plain) == plain


@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss"])
def test_experts_are_widened_one_at_a_time_whatever_their_biases_are_divided_by(
    built: BuildBundle, name: str
) -> None:
    model = built(name, "fp16")
    (graph,) = model.manifest.variants("cuda")
    data = widen_products((model.bundle / graph.path).read_bytes())
    before, after = (
        Counter(node.op_type for node in pb.Model.FromString(each).graph.node)
        for each in (data, one_expert_at_a_time(data))
    )
    assert before["MoE"] == after["Loop"] > 0 == after["MoE"]


def test_graphs_for_the_processor_are_left_alone(built: BuildBundle) -> None:
    for precision in ("w8a8", "int4"):
        data = built("qwen3", precision).graph.read_bytes()
        assert widen_products(data) == data
