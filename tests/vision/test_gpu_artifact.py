"""A model that reads images is compiled for a GPU: its decoder there, its tower beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from appliance.compiler import Record, ensure_artifacts, golden
from appliance.compiler.artifact import GRAPH_NAME, VISION_NAME
from appliance.compiler.probe import no_images
from appliance.config import Layout
from appliance.engine.session import open_session
from appliance.engine.vision.eyes import Eyes, Shown
from appliance.engine.vision.patches import grid_of
from appliance.engine.vision.sight import expanded
from appliance.scheduler import Sequence
from appliance.trust.node_key import NodeKey
from installer.checkpoint.probe import open_graph
from tests.checkpoint.runner import relative_error
from tests.compiler.conftest import stored
from tests.fakes.gpu import machine_with, write_release
from tests.vision.conftest import FAMILIES, BuildSeeing
from tests.vision.test_device import TOLERANCE, on_device
from tests.vision.test_parity import IMAGES, Reference, prompt_of


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_compiled_sees_what_the_reference_sees(
    seeing: BuildSeeing, family: str, tmp_path: Path
) -> None:
    model = seeing(family)
    layout, records = Layout(tmp_path / "node"), list[Record]()
    key = NodeKey.create(layout.node)
    bundle = stored(model.bundle)
    compiled = ensure_artifacts(
        *(layout, [bundle], key),
        python=write_release(tmp_path / "release", machine_with()),
        made=lambda _bundle, record: records.append(record),
    )
    (record,) = records
    assert record.provider == "cuda"
    assert [(r.provider, r.code) for r in record.reasons] == [("tensorrt", "no_variant")]
    assert record.compared is not None
    assert 0 < record.compared.error <= record.compared.bound
    assert {entry.path for entry in record.files} == {
        *("model.onnx", "weights.bin", "vision.onnx", "vision-weights.bin"),
    }

    artifact = compiled.directories[bundle.digest]
    vision = model.vision
    grids = [grid_of(image, vision) for image in IMAGES]
    ids, starts = expanded(prompt_of(model, len(IMAGES)), vision.image_token, grids)
    eyes = Eyes(open_session(artifact, 1, VISION_NAME), vision)
    sight = eyes.see(Shown(ids, starts, list(IMAGES)), lambda: False)
    with on_device(model, compiled=artifact / GRAPH_NAME) as runner:
        got = runner.prefill(Sequence(sight.keyed(ids), beside=sight), 0, len(ids))[0]
    wanted = Reference(model).logits(ids, IMAGES)[-1]
    assert relative_error(got, wanted) <= TOLERANCE


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
