"""What a bundle takes of a node follows its weights and what its grade becomes there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.footprint import artifact_bytes, loaded_bytes
from appliance.bundle.manifest import Manifest, decode
from tests.conftest import REPOSITORY


@pytest.fixture
def manifest() -> Manifest:
    bundle = REPOSITORY / "tests/golden/0.1/decoder"
    return decode((bundle / MANIFEST_NAME).read_bytes())


def graded(manifest: Manifest, grade: str) -> Manifest:
    graph = msgspec.structs.replace(manifest.graph, precision=grade)
    return msgspec.structs.replace(manifest, graphs=(graph, *manifest.graphs[1:]))


def test_floats_of_few_bits_are_wide_on_a_processor_and_as_they_are_on_a_gpu(
    manifest: Manifest,
) -> None:
    integers = graded(manifest, "int8")
    for grade, wider in (("fp16", 2), ("fp8", 3.75)):
        floats = graded(manifest, grade)
        assert loaded_bytes(floats, gpu=True) == loaded_bytes(integers, gpu=True)
        assert artifact_bytes(floats, gpu=True) == artifact_bytes(integers, gpu=True)
        wide, plain = (loaded_bytes(m, gpu=False) for m in (floats, integers))
        assert wide == pytest.approx(wider * plain, abs=4)
        assert artifact_bytes(floats, gpu=False) > artifact_bytes(integers, gpu=False)


def test_weights_are_counted_and_nothing_else(manifest: Manifest) -> None:
    folder = Path(manifest.graph.path).parent
    stored = sum(entry.size for entry in manifest.files if Path(entry.path).parent == folder)
    assert artifact_bytes(manifest, gpu=False) == round(2.5 * stored)
    assert loaded_bytes(manifest, gpu=False) == round(1.25 * stored)
    adapter = msgspec.structs.replace(manifest, kind="adapter", graphs=())
    for bytes_of in (artifact_bytes, loaded_bytes):
        assert bytes_of(adapter, gpu=False) == bytes_of(adapter, gpu=True) == 0
