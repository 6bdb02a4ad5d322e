"""Every grade's graphs are compared by the compiler's own processes, or say why they were not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpu_check.__main__ import _measure_grades
from gpu_check.budget import Budget
from gpu_check.grades import GRADES, TRIALS, Trial, measure_grade
from gpu_check.measuring import Setting
from gpu_check.results import PROCESSOR, Run
from installer.checkpoint.quantize import SCHEMES
from tests.fakes.gpu import machine_with, write_release


@pytest.fixture
def on_fake(tmp_path: Path) -> Path:
    """A release whose GPU is the processor."""
    write_release(tmp_path / "gpu", machine_with())
    return tmp_path / "gpu"


def setting(release: Path, run: Run) -> Setting:
    return Setting(
        run=run, budget=Budget(None), grade="fp16", rounds=1, release=release, peer_python=None,
        work=release.parent, written=lambda: None,
    )  # fmt: skip


def test_every_grade_but_that_of_native_operators_is_tried() -> None:
    assert {*GRADES, "w4a8"} == SCHEMES.keys(), "on a GPU w4a8 is computed as int4 is"
    assert {trial.grade for trial in TRIALS} == {*GRADES}
    assert len({trial.words for trial in TRIALS}) == len(TRIALS)


BOTH = ["fp16", "int8"]


@pytest.mark.parametrize(
    ("trial", "precisions"),
    [
        (Trial("w8a8"), BOTH),
        (Trial("w8a8", states=True), BOTH),
        (Trial("fp16", wide=True), ["fp16"]),
    ],
)
def test_each_graph_has_its_error_and_its_bound(
    tmp_path: Path, on_fake: Path, trial: Trial, precisions: list[str]
) -> None:
    found = dict(measure_grade(tmp_path / "root", on_fake, trial))
    assert found.keys() == {trial.named(precision) for precision in precisions}
    for measured in found.values():
        assert not isinstance(measured, str)
        error, bound = measured
        assert 0 < error <= bound
    assert not (tmp_path / "root").exists()


def test_what_cannot_be_compiled_says_why(tmp_path: Path, on_fake: Path) -> None:
    found = dict(measure_grade(tmp_path / "root", on_fake, Trial("fp8")))
    assert not isinstance(found["fp8 as fp16"], str)
    # The processor, which stands for the GPU here, has no product of 8-bit floats.
    assert "MatMulBlockQuantizedFp8Weight" in str(found["fp8 as fp8"])


def test_a_run_has_what_was_found_and_the_reasons_for_the_rest(
    on_fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = (Trial("fp8"), Trial("int4"), Trial("w8a8", adapters=True))
    monkeypatch.setattr("gpu_check.__main__.TRIALS", trials)
    run = Run("2026-11-28", "Example GPU")
    _measure_grades(setting(on_fake, run))
    with_adapters = {f"w8a8 as {made} with adapters" for made in ("fp16", "int8")}
    assert run.golden.keys() == {"fp8 as fp16", "int4 as int4", *with_adapters}
    assert run.missing.keys() == {"golden prompt, fp8 as fp8"}
    shutil.rmtree(on_fake / "venv")
    _measure_grades(setting(on_fake, run))
    assert run.missing.keys() >= {trial.words for trial in trials}
    on_processor = Run("2026-11-28", PROCESSOR)
    _measure_grades(setting(on_fake, on_processor))
    assert on_processor.missing == {}
