"""Products are measured in every form that bundles have, here by the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from gpu_check.kinds import timed
from gpu_check.products import FORMS, ROWS, Shape, graph_of, measure_products, names, write_bytes
from installer.checkpoint.widening import spell_out

SHAPE = Shape(hidden=128, inner=256, times=2)


def open_graph(folder: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    graph = spell_out((folder / "model.onnx").read_bytes())
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def test_every_form_has_a_time_for_each_number_of_rows(tmp_path: Path) -> None:
    steps = measure_products(tmp_path / "products", open_graph, "cpu", timed, SHAPE)
    assert list(steps) == list(names())
    assert len(steps) == len(FORMS) * len(ROWS)
    assert all(first > 0 and again > 0 for first, again in steps.values())
    assert not (tmp_path / "products").exists()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_computed_are_numbers_and_each_product_has_weights_of_its_own(
    tmp_path: Path, form: str
) -> None:
    write_bytes(tmp_path / "weights.bin", Shape(128, 256, 1))
    (tmp_path / "model.onnx").write_bytes(graph_of(form, Shape(128, 256, 1)))
    session = open_graph(tmp_path)
    # So small that no sum outgrows 16 bits.
    (y,) = session.run(None, {"x": np.full((3, 128), 1e-4, np.float16)})
    assert y.shape == (3, 128)
    assert np.isfinite(y).all()
    assert np.unique(y[0]).size > 1, "rows of weights differ"
