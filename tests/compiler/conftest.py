"""A small bundle as the model store holds it, and a node with its key."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from appliance.bundle.manifest import MANIFEST_NAME, decode, digest
from appliance.config import Layout
from appliance.model_store import StoredBundle
from appliance.trust.node_key import NodeKey
from installer.checkpoint import build_bundle
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_bert, write_qwen3


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
