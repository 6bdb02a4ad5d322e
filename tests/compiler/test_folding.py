"""Weights that are made of other weights lie beside the graph, and the graph computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from appliance.bundle.manifest import decode
from appliance.compiler import folding
from appliance.compiler.probe import Array
from appliance.pb import onnx_graph_pb2 as pb
from installer.checkpoint import build_bundle
from installer.checkpoint.quantize import Precision
from tests.fakes.checkpoints import write_qwen3

LARGE = 1 << 30
"""Bytes of a file of weights: all in one."""


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model's weights are folded, too."""
    monkeypatch.setattr(folding, "MOST_INSIDE", 0)


def trt_graph(folder: Path, precision: Precision, limit: int) -> tuple[bytes, Path]:
    """A graph for TensorRT and the folder of its weights."""
    checkpoint = write_qwen3(folder / "checkpoint")
    build_bundle(
        checkpoint, folder / "it", name="it", version="1", signer=None, precision=precision,
        max_file_bytes=limit,
    )  # fmt: skip
    graph = decode((folder / "it/bundle.json").read_bytes()).variant("trt")
    assert graph is not None
    return (folder / "it" / graph.path).read_bytes(), folder / "it" / graph.weights_folder


def computed(graph: bytes, weights: Path) -> list[Array]:
    options = ort.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(weights)
    )
    # Or products by integers are computed another way.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    chance, feeds = np.random.default_rng(5), {}
    for entry in session.get_inputs():
        shape = [{"batch": 2, "tokens": 3, "rows": 2, "capacity": 8}.get(d, d) for d in entry.shape]
        if entry.type == "tensor(int64)":
            feeds[entry.name] = chance.integers(0, 3, shape)
        else:
            feeds[entry.name] = chance.normal(size=shape).astype(np.float16)
    results: list[Array] = session.run(None, feeds)
    return results


@pytest.mark.parametrize(
    ("precision", "limit"), [("w8a8", LARGE), ("w8a8", 17_000), ("fp8", LARGE), ("fp32", 33_000)]
)
def test_the_folded_graph_computes_the_same_from_weights_beside_it(
    everything: None, tmp_path: Path, precision: Precision, limit: int
) -> None:
    graph, weights = trt_graph(tmp_path, precision, limit)
    (tmp_path / "folded").mkdir()
    folded, folder = folding.fold(graph, weights, tmp_path / "folded")
    assert folder == tmp_path / "folded"
    model = pb.Model.FromString(folded)
    stored = {tensor.name for tensor in model.graph.initializer}
    assert all(set(node.input) - stored for node in model.graph.node), "all else reads the inputs"
    assert len(folded) < 20_000, "no weights are inside"
    for before, after in zip(computed(graph, weights), computed(folded, folder), strict=True):
        assert np.array_equal(before, after)


def test_a_graph_with_little_to_fold_stays_as_it_is(tmp_path: Path) -> None:
    graph, weights = trt_graph(tmp_path, "w8a8", LARGE)
    (tmp_path / "folded").mkdir()
    assert folding.fold(graph, weights, tmp_path / "folded") == (graph, weights)
    assert not list((tmp_path / "folded").iterdir())
