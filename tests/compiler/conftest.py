"""A small bundle as the model store holds it, and a node with its key."""

from __future__ import annotations

import os
import shutil
import sys
import venv
from pathlib import Path

import pytest

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import decode, digest
from appliance.config import Layout
from appliance.model_store import StoredBundle
from appliance.trust.node_key import NodeKey
from installer.checkpoint import build_bundle
from tests.compiler.stand import Stand
from tests.conftest import BUILD_CACHE, FULL_VARIABLE, REPOSITORY, BuildOnce
from tests.fakes import no_cuda, no_tensorrt
from tests.fakes.checkpoints import write_bert, write_qwen3

RUNTIME = BUILD_CACHE / "gpu-runtime"
"""The GPU's ONNX Runtime, which scripts/fetch-gpu-runtime brings."""


@pytest.fixture(scope="session")
def decoder_bundle(build_once: BuildOnce) -> Path:
    """An unsigned w8a8 decoder bundle, which has two graphs and, because of its width, none of
    native operators. Copy it before changing it."""

    def build(directory: Path) -> None:
        checkpoint = write_qwen3(directory / "checkpoint", tied=False, intermediate=90)
        build_bundle(checkpoint, directory / "it", name="tiny", version="1", signer=None)

    return build_once("compiler-decoder", build) / "it"


@pytest.fixture(scope="session")
def encoder_bundle(build_once: BuildOnce) -> Path:
    """An unsigned int8 encoder bundle. Copy it before changing it."""

    def build(directory: Path) -> None:
        checkpoint = write_bert(directory / "checkpoint")
        build_bundle(checkpoint, directory / "it", name="tiny-bert", version="1", signer=None)

    return build_once("compiler-encoder", build) / "it"


@pytest.fixture
def bundle(decoder_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the decoder bundle that a test may change."""
    return Path(shutil.copytree(decoder_bundle, tmp_path / "bundle"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "node")


@pytest.fixture
def node_key(layout: Layout) -> NodeKey:
    return NodeKey.create(layout.node)


def stored(directory: Path) -> StoredBundle:
    """`directory` as the model store would give it."""
    data = (directory / MANIFEST_NAME).read_bytes()
    manifest = decode(data)
    return StoredBundle(manifest.name, manifest.version, digest(data), directory, manifest)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with both virtual environments."""
    if not RUNTIME.is_dir():
        if os.environ.get(FULL_VARIABLE):
            pytest.fail("run scripts/fetch-gpu-runtime first")
        pytest.skip("scripts/fetch-gpu-runtime brings the wheel")
    directory = tmp_path_factory.mktemp("release")
    (directory / "venv/bin").mkdir(parents=True)
    script = directory / "venv/bin/python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    gpu = directory / "venv-cuda13"
    venv.create(gpu, symlinks=True)
    here = [path for path in sys.path if path.endswith("site-packages")]
    lines = [str(RUNTIME), str(REPOSITORY), *here]
    (site,) = gpu.glob("lib/python3.*/site-packages")
    (site / "release.pth").write_text("\n".join(lines) + "\n")
    return directory


@pytest.fixture
def on_gpu(release: Path) -> Path:
    return release / "venv-cuda13/bin/python"


@pytest.fixture(scope="session")
def cuda_libraries(release: Path, build_once: BuildOnce) -> Path:
    """CUDA's libraries as a machine with two devices has them, that do nothing."""
    provider = RUNTIME / "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    return build_once("cuda", lambda folder: no_cuda.write_libraries(provider, folder, device=True))


@pytest.fixture(scope="session")
def tensorrt_libraries(release: Path, build_once: BuildOnce) -> Path:
    capi = RUNTIME / "onnxruntime/capi"
    return build_once("tensorrt", lambda folder: no_tensorrt.write_libraries(capi, folder))


@pytest.fixture
def stand(on_gpu: Path, tensorrt_libraries: Path, tmp_path: Path) -> Stand:
    for name in ("elsewhere", "given", "out"):
        (tmp_path / name).mkdir()
    return Stand(on_gpu, tensorrt_libraries, tmp_path)
