"""The page says what the files of figures say, and keeps what is written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu_check.page import BEGIN, END, FIGURES, PAGE, put_into, runs_in, section
from gpu_check.results import Measured, Run
from gpu_check.workloads import FIRST, Workload


def example(device: str = "Example GPU", date: str = "2026-11-28") -> Run:
    ours = {
        "provider": "cuda", "device": device, "reasons": ["tensorrt: no libnvinfer"],
        "compared": {"error": 0.0012, "bound": 0.02}, "fingerprint": {"gpu": device},
        "weights": 1_200_000_000, "token_bytes": 114_688, "recorded": True,
        "bandwidth": 3.0e12, "loaded": 1.5,
    }  # fmt: skip
    shape = Measured("qwen3-0.6b", "fp16", {"bundle build": 8.0}, ours, {"torch": "2.11"})
    for seconds in (0.4, 0.3, 0.5):
        shape.add("ours", Workload(1, 256, 64), seconds)
        shape.add("peer", Workload(1, 256, 64), 10 * seconds)
    shape.add("ours", FIRST, 0.01)
    shape.kinds["pinned"] = {"prompt of 16": [9.0, 3.0]}
    shape.kinds["default"] = {"prompt of 16": [400.0, 3.0]}
    missing = {"qwen3-8b: 1 x 64 out": "the time was over before it"}
    return Run(date, device, [shape], missing, {"fp8 as fp8": [0.0021, 0.02]})


def test_the_page_is_what_its_figures_say() -> None:
    page = PAGE.read_text("utf-8")
    assert put_into(page, runs_in(FIGURES)) == page, "run scripts/gpu-check --render"


def test_a_run_read_from_its_file_is_the_same(tmp_path: Path) -> None:
    run = example()
    run.write(tmp_path / f"{run.name}.json")
    assert (tmp_path / "2026-11-28-example-gpu.json").exists()
    assert runs_in(tmp_path) == [run]


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "2026.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match="another form"):
        runs_in(tmp_path)


def test_a_section_has_medians_ratios_kinds_and_what_is_missing() -> None:
    text = section(example())
    assert "## Example GPU, 2026-11-28" in text
    assert "| 1 x 64 out, tokens/s | 160.0 | 16.0 | 10.00 |" in text
    assert "| time to first token, ms | 10.0 | - | - |" in text
    assert "| prompt of 16 | 9.00 / 3.00 | 400.00 / 3.00 |" in text
    assert "**Not measured**, since the time was over before it: qwen3-8b: 1 x 64 out." in text
    assert "One stream decodes 162 tokens/s" in text
    assert "| fp8 as fp8 | 0.0021 | 0.02 |" in text


def test_a_new_run_leaves_other_devices_and_the_rest_of_the_page(tmp_path: Path) -> None:
    page = f"# By hand\n\n{BEGIN}\noutdated\n{END}\n\n## Also by hand\n"
    for run in (example("A", "2026-11-28"), example("B", "2026-11-30")):
        run.write(tmp_path / f"{run.name}.json")
    made = put_into(page, runs_in(tmp_path))
    assert made.startswith("# By hand\n")
    assert made.endswith("\n\n## Also by hand\n")
    assert "outdated" not in made
    assert made.index("## B, 2026-11-30") < made.index("## A, 2026-11-28")
    assert put_into(made, runs_in(tmp_path)) == made


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        put_into("# A page\n", [])
