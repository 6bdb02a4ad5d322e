"""A model that reads images is compiled for a GPU: its decoder, and its tower if that can be."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import encode
from appliance.compiler import Record, ensure_artifacts, golden, tower_compile
from appliance.compiler.artifact import (
    GRAPH_NAME,
    VISION_CUDA_NAME,
    VISION_NAME,
    VISION_WEIGHTS_NAME,
    WEIGHTS_NAME,
)
from appliance.compiler.gpu_compile import Target
from appliance.compiler.grid import feed
from appliance.compiler.memory import candidates
from appliance.compiler.probe import no_images
from appliance.compiler.record import compiled_as
from appliance.compiler.sources import weight_files
from appliance.compiler.tower_compile import compile_tower_beside
from appliance.config import EngineSettings, Layout
from appliance.engine.session import open_session
from appliance.engine.vision.eyes import Eyes, Shown
from appliance.engine.vision.patches import grid_of, patches
from appliance.engine.vision.sight import expanded
from appliance.engine.vision.tower import open_tower
from appliance.model_store import StoredBundle
from appliance.scheduler import Sequence
from appliance.trust.node_key import NodeKey
from installer.checkpoint.probe import open_graph
from tests.checkpoint.runner import relative_error
from tests.compiler.conftest import stored
from tests.fakes.gpu import machine_with, write_release
from tests.vision.conftest import MOST, BuildSeeing
from tests.vision.test_device import TOLERANCE, on_device
from tests.vision.test_parity import IMAGES, Reference, prompt_of


@dataclass
class Site:
    """A node with a GPU, and the records that it has made."""

    layout: Layout
    key: NodeKey
    python: Path
    records: list[Record] = field(default_factory=list)

    def compile(self, bundle: StoredBundle) -> Path:
        compiled = ensure_artifacts(
            *(self.layout, [bundle], self.key),
            python=self.python,
            made=lambda _bundle, record: self.records.append(record),
        )
        return compiled.directories[bundle.digest]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    layout = Layout(tmp_path / "node")
    python = write_release(tmp_path / "release", machine_with())
    return Site(layout, NodeKey.create(layout.node), python)


def files_of(record: Record) -> set[str]:
    return {entry.path for entry in record.files}


@pytest.mark.parametrize("family", MOST)
def test_what_is_compiled_sees_what_the_reference_sees(
    seeing: BuildSeeing, family: str, site: Site
) -> None:
    model = seeing(family)
    artifact = site.compile(stored(model.bundle))
    (record,) = site.records
    assert record.provider == "cuda"
    assert [(r.provider, r.code) for r in record.reasons] == [("tensorrt", "no_variant")]
    assert record.tower is None
    assert record.compared is not None
    assert 0 < record.compared.error <= record.compared.bound
    decoder, tower = {GRAPH_NAME, WEIGHTS_NAME}, {VISION_CUDA_NAME, VISION_WEIGHTS_NAME}
    assert files_of(record) == decoder | tower

    vision = model.vision
    grids = [grid_of(image, vision) for image in IMAGES]
    ids, starts = expanded(prompt_of(model, len(IMAGES)), vision.image_token, grids)
    eyes = Eyes(open_session(artifact, 1, VISION_CUDA_NAME), vision)
    sight = eyes.see(Shown(ids, starts, list(IMAGES)), lambda: False)
    with on_device(model, compiled=artifact / GRAPH_NAME) as runner:
        got = runner.prefill(Sequence(sight.keyed(ids), beside=sight), 0, len(ids))[0]
    wanted = Reference(model).logits(ids, IMAGES)[-1]
    assert relative_error(got, wanted) <= TOLERANCE


def test_a_tower_without_a_graph_for_it_stays_on_the_processor_with_the_reason(
    seeing: BuildSeeing, site: Site, tmp_path: Path
) -> None:
    older = Path(shutil.copytree(seeing("qwen3_vl").bundle, tmp_path / "bundle"))
    manifest = seeing("qwen3_vl").manifest
    vision = msgspec.structs.replace(seeing("qwen3_vl").vision, cuda=msgspec.UNSET)
    changed = encode(msgspec.structs.replace(manifest, vision=vision))
    (older / MANIFEST_NAME).write_bytes(changed)
    artifact = site.compile(stored(older))
    (record,) = site.records
    assert record.provider == "cuda"
    assert record.tower is not None
    assert record.tower.code == "no_variant"
    assert f"images seen by cpu: {record.tower.message}" in compiled_as(record)
    assert {VISION_NAME, VISION_WEIGHTS_NAME} <= files_of(record)
    open_tower(artifact, EngineSettings(threads=1))


def test_a_tower_that_sees_something_else_on_the_gpu_stays_on_the_processor(
    seeing: BuildSeeing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = seeing("qwen2_5_vl", "int8")
    monkeypatch.setattr(tower_compile, "BOUNDS", {"int8": 1e-9})
    target = Target("CPUExecutionProvider", "cpu")
    reason = compile_tower_beside(model.bundle, model.manifest, tmp_path, target)
    assert reason is not None
    assert reason.code == "golden_differs"
    assert {path.name for path in tmp_path.iterdir()} == {VISION_NAME, VISION_WEIGHTS_NAME}


@pytest.mark.parametrize("family", MOST)
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 1e-4), ("int8", 0.05)])
def test_the_towers_graph_for_cuda_sees_what_the_processors_sees(
    seeing: BuildSeeing, family: str, precision: str, bound: float
) -> None:
    model = seeing(family, precision)
    vision = model.vision
    assert isinstance(vision.cuda, str)
    given = {"patches": patches(IMAGES[0], vision), **feed(grid_of(IMAGES[0], vision), vision)}
    seen, wanted = (
        open_graph(model.bundle / graph).run(None, given)[0]
        for graph in (vision.cuda, vision.graph)
    )
    for level, other in zip(seen, wanted, strict=True):
        assert relative_error(level, other) <= bound


@pytest.mark.parametrize("factor", [("fp32", 1), ("fp16", 2), ("int8", 4)], ids=str)
def test_a_towers_floats_count_in_the_gpus_memory(
    seeing: BuildSeeing, factor: tuple[str, int]
) -> None:
    precision, times = factor
    model = seeing("qwen3_vl", precision)
    vision = msgspec.structs.replace(model.vision, cuda=msgspec.UNSET)
    blind = msgspec.structs.replace(model.manifest, vision=vision)
    (with_tower,), (without,) = (candidates(m, 1 << 40) for m in (model.manifest, blind))
    stored_bytes = sum(f.size for f in weight_files(model.manifest, "graph/vision").values())
    assert with_tower.weights - without.weights == times * stored_bytes


def test_the_golden_prompt_shows_an_image(
    seeing: BuildSeeing, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = seeing("qwen3_vl")
    session = open_graph(model.bundle / model.manifest.graph.path)
    shown = golden.on_processor(session, session, model.decoder)
    monkeypatch.setattr(
        golden, "_images", lambda session, piece: no_images(session, piece.start, len(piece.ids))
    )
    unseen = golden.on_processor(session, session, model.decoder)
    away = np.linalg.norm(shown - unseen, axis=1) / np.linalg.norm(shown, axis=1)
    assert away.max() > max(golden.BOUNDS.values())
