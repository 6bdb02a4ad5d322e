"""Products that read the same numbers are one product, and give what they gave."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import Manifest, decode
from appliance.compiler.merging import merge_products
from appliance.compiler.probe import run_probe
from appliance.pb import onnx_graph_pb2 as pb
from installer.checkpoint.quantize import Precision
from tests.checkpoint.conftest import builds
from tests.checkpoint.families import find_models
from tests.conftest import BuildOnce

MODELS = {name: model for name, model in find_models().items() if model.main and model.on_gpus}
"""Of which there are graphs for CUDA."""
CLOSE = "qwen3.5-moe"
"""Two of its experts are so close in floats of 32 bits that a rounding chooses between them."""
CASES: list[tuple[str, Precision]] = [
    *((name, "fp16" if name == CLOSE else "fp32") for name in MODELS),
    *(("qwen2-late-windows", kind) for kind in ("fp16", "fp8", "w8a8", "int4")),
]
"""Bundles that other tests build as well; of both kinds of floats the graph has 16 bits."""


class Built:
    """A bundle, its graph for CUDA, and that graph merged."""

    def __init__(self, directory: Path) -> None:
        self.manifest: Manifest = decode((directory / MANIFEST_NAME).read_bytes())
        graph = self.manifest.variant("cuda")
        assert graph is not None
        self._weights = directory / graph.weights_folder
        self.plain = (directory / graph.path).read_bytes()
        self.merged = merge_products(self.plain)

    def open(self, graph: bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self._weights)
        )
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def built(request: pytest.FixtureRequest, build_once: BuildOnce) -> Built:
    return Built(builds(build_once)(*request.param).bundle)


def operators(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in pb.Model.FromString(graph).graph.node)


def test_the_numbers_are_those_of_the_graph_as_it_is(built: Built) -> None:
    spec = built.manifest.spec
    plain, merged = (run_probe(built.open(graph), spec) for graph in (built.plain, built.merged))
    for one, other in zip(plain, merged, strict=True):
        assert one.dtype == other.dtype
        away = np.linalg.norm(one.astype(np.float64) - other)
        assert away <= 0.01 * np.linalg.norm(one.astype(np.float64))


def test_inputs_and_outputs_keep_their_names_and_order(built: Built) -> None:
    plain, merged = (pb.Model.FromString(data).graph for data in (built.plain, built.merged))
    assert list(plain.input) == list(merged.input)
    assert list(plain.output) == list(merged.output)


def test_there_are_fewer_products_where_there_are_floats(built: Built) -> None:
    plain, merged = operators(built.plain), operators(built.merged)
    saved = plain["MatMul"] - merged["MatMul"]
    if built.manifest.graph.precision == "int4":
        assert not saved, "blocks of integers are multiplied as they are"
        return
    assert built.manifest.decoder is not None
    layers = built.manifest.decoder.layers
    assert saved >= 2 * layers, "queries, keys and values at least"
    assert merged["Split"] - plain["Split"] == merged["Concat"] - plain["Concat"] >= layers


def test_merging_again_changes_nothing(built: Built) -> None:
    assert operators(merge_products(built.merged)) == operators(built.merged)
