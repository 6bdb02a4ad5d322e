"""Embedders of releases that built no graph for a GPU go on being served, on the processor."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import Manifest, decode, encode
from appliance.compiler import compile_in_process
from appliance.compiler.ladder import refused
from appliance.engine.encoder_runner import EncoderRunner, Vectors
from appliance.engine.session import open_session
from installer.checkpoint import build_bundle
from tests.conftest import REPOSITORY
from tests.fakes.checkpoints import write_bert
from tests.fakes.gpu import machine_with

GOLDEN = REPOSITORY / "tests/golden/0.1"


def manifest(bundle: Path) -> Manifest:
    data = (bundle / MANIFEST_NAME).read_bytes()
    found = decode(data)
    assert encode(found) == data
    return found


def test_an_embedder_of_the_first_release_computes_what_it_did(tmp_path: Path) -> None:
    checkpoint = write_bert(
        tmp_path / "checkpoint",
        vocab=300,
        hidden=32,
        layers=1,
        heads=2,
        intermediate=32,
        context=64,
    )
    new = tmp_path / "new"
    build_bundle(
        checkpoint, new, name="tiny", version="1.0", precision="fp32", signer=None, created=0
    )
    old = GOLDEN / "encoder"
    for name in ("graph/cpu/model.onnx", "graph/cpu/weights-00001.bin"):
        assert (old / name).read_bytes() == (new / name).read_bytes()
    assert len(manifest(old).graphs) == 1 < len(manifest(new).graphs)
    assert np.allclose(_vectors(old, tmp_path / "a"), _vectors(new, tmp_path / "b"), atol=1e-6)


def test_without_a_graph_for_a_gpu_that_is_the_reason() -> None:
    for name in ("encoder", "reranker"):
        said = refused("cuda", manifest(GOLDEN / name), machine_with())
        assert said is not None
        assert said.code == "no_variant"


def _vectors(bundle: Path, artifact: Path) -> Vectors:
    compile_in_process(bundle, artifact, python=Path(sys.executable))
    texts = [[2, 40, 50, 60, 3], [2, 7, 3]]
    return EncoderRunner(open_session(artifact, 1)).run(texts)
