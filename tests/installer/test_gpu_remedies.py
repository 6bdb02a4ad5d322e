"""A model that the processor computes although there is a GPU comes with what helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.compiler import Refusal
from installer.gpu import look
from installer.gpu_remedies import REMEDIES, remedy
from tests.fakes.gpu_machine import gpu_machine


def against(cuda: str, tensorrt: str = "no_variant") -> list[Refusal]:
    return [
        Refusal(provider="tensorrt", code=tensorrt, message="one"),
        Refusal(provider="cuda", code=cuda, message="another"),
    ]


@pytest.mark.parametrize("code", REMEDIES)
def test_what_an_operator_can_mend_is_told_how(tmp_path: Path, code: str) -> None:
    assert remedy(against(code), look(gpu_machine(tmp_path / "m"))) == REMEDIES[code]
    assert "`appliance " in REMEDIES[code]


def test_where_cuda_computes_nothing_is_advised(tmp_path: Path) -> None:
    gpus = look(gpu_machine(tmp_path / "m"))
    assert remedy(against("library_missing")[:1], gpus) == ""
    assert remedy((), gpus) == ""


def test_a_driver_helps_only_where_there_is_a_gpu(tmp_path: Path) -> None:
    without = look(gpu_machine(tmp_path / "m", driver=""))
    assert "install the driver" in remedy(against("no_gpu"), without)
    assert remedy(against("no_gpu"), replace(without, gpus=())) == ""
