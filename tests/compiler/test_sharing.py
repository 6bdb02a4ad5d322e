"""A second graph reads the first one's weights, and brings no large ones of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import decode
from appliance.compiler.compile import compile_bundle
from appliance.compiler.sharing import share_weights
from appliance.errors import UnsupportedError
from appliance.pb import onnx_graph_pb2 as pb
from installer.checkpoint import build_bundle
from tests.fakes.checkpoints import write_qwen3


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("joined")
    checkpoint = write_qwen3(root / "checkpoint", intermediate=90)
    build_bundle(checkpoint, root / "it", name="m", version="1", signer=None, precision="w8a8")
    (root / "artifact").mkdir()
    compile_bundle(
        root / "it", decode((root / "it" / MANIFEST_NAME).read_bytes()), root / "artifact"
    )
    return root / "artifact"


def external(path: Path) -> dict[str, dict[str, str]]:
    model = pb.Model.FromString(path.read_bytes())
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.data_location == 1
    }


def test_every_weight_is_where_the_first_graph_has_it(artifact: Path) -> None:
    assert {path.name for path in artifact.iterdir()} == {
        *("model.onnx", "prefill.onnx", "weights.bin")
    }
    first, second = external(artifact / "model.onnx"), external(artifact / "prefill.onnx")
    assert second
    assert all(first[name] == place for name, place in second.items())
    assert sum("prepacked_0" in place for place in second.values()) == 2 * 7 + 1


def test_a_large_weight_that_only_the_second_has_is_refused(artifact: Path) -> None:
    graph = (artifact / "model.onnx").read_bytes()
    model = pb.Model.FromString(graph)
    tensor = next(t for t in model.graph.initializer if t.data_location == 1)
    tensor.name += ".other"
    next(entry for entry in tensor.external_data if entry.key == "length").value = str(1 << 20)
    with pytest.raises(UnsupportedError, match=tensor.name):
        share_weights(graph, model.SerializeToString(), artifact / "weights.bin")


def test_a_weight_of_another_shape_is_refused(artifact: Path) -> None:
    graph = (artifact / "model.onnx").read_bytes()
    model = pb.Model.FromString(graph)
    tensor = next(t for t in model.graph.initializer if t.data_location == 1)
    tensor.dims[0] //= 2
    with pytest.raises(UnsupportedError, match=tensor.name):
        share_weights(graph, model.SerializeToString(), artifact / "weights.bin")
