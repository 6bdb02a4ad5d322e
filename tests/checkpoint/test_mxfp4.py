"""MXFP4 means what the format says, in floats and in the integers that grades keep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from appliance.errors import CheckpointError
from installer.checkpoint.families.known import FAMILIES
from installer.checkpoint.packed.methods import treatment
from installer.checkpoint.packed.mxfp4 import ExpertMatrix
from installer.checkpoint.quantize import Blocks, UInt8, dequantize
from installer.checkpoint.reader import Checkpoint
from tests.checkpoint.conftest import BuildBundle
from tests.checkpoint.families.gpt_oss import to_mxfp4
from tests.checkpoint.test_refusals import refused

EXPERTS, ROWS, GROUPS = 2, 3, 4
NAME = "experts.gate_up_proj"


@dataclass(frozen=True)
class InMemory:
    """Stored tensors that lie in memory."""

    tensors: Mapping[str, npt.NDArray[Any]]

    def holds(self, name: str) -> bool:
        return name in self.tensors

    def stored_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def stored_type(self, name: str) -> str:
        return {"uint8": "U8", "float32": "F32"}[str(self.tensors[name].dtype)]

    def stored(self, name: str, *types: str) -> npt.NDArray[Any]:
        assert self.stored_type(name) in types
        return self.tensors[name]

    def stored_bytes(self, name: str, first: int, last: int) -> UInt8:
        rows: UInt8 = self.tensors[name][first:last].reshape(last - first, -1)
        return rows

    def stored_floats(self, name: str) -> npt.NDArray[np.float32]:
        return self.tensors[name].astype(np.float32)


def stored(blocks: UInt8, scales: UInt8) -> InMemory:
    return InMemory({f"{NAME}_blocks": blocks, f"{NAME}_scales": scales})


BLOCKS = arrays(np.uint8, (EXPERTS, ROWS, GROUPS, 16))
SCALES = arrays(np.uint8, (EXPERTS, ROWS, GROUPS), elements=st.integers(1, 250))


@given(BLOCKS, SCALES, st.integers(0, EXPERTS - 1))
def test_numbers_and_integers_are_the_references_to_the_bit(
    blocks: UInt8, scales: UInt8, expert: int
) -> None:
    wanted = (
        convert_moe_packed_tensors(
            torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32
        )
        .numpy()[expert]
        .T
    )
    matrix = ExpertMatrix(stored(blocks, scales), NAME, expert)
    assert matrix.shape == wanted.shape
    assert (matrix.rows(1, ROWS) == wanted[1:]).all()
    assert (matrix.columns(5, 70) == wanted[:, 5:70]).all()
    kept = matrix.kept(8)
    assert kept is not None
    runs = list(kept.runs())
    whole = Blocks(
        np.concatenate([run.packed for run in runs]),
        np.concatenate([run.scales for run in runs]),
        None,
    )
    assert (dequantize(whole, 8, wanted.shape[1]) == wanted).all()
    assert matrix.kept(4) is None


def test_numbers_that_are_on_the_grid_come_back() -> None:
    values = np.random.default_rng(3).choice([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -3, -6], (1, 2, 64))
    values[0, 0, :2] = 6, -6
    values = (values * 2.0 ** np.array([[[-9], [4]]])).astype(np.float32)
    blocks, scales = to_mxfp4(values)
    matrix = ExpertMatrix(stored(blocks, scales), NAME, 0)
    assert (matrix.rows(0, 2) == values[0]).all()


def test_a_scale_that_is_no_number_is_refused() -> None:
    blocks = np.zeros((1, 1, 1, 16), np.uint8)
    matrix = ExpertMatrix(stored(blocks, np.full((1, 1, 1), 255, np.uint8)), NAME, 0)
    with pytest.raises(CheckpointError, match=f"{NAME}_scales"):
        matrix.rows(0, 1)


def test_blocks_and_scales_that_do_not_fit_are_refused(built: BuildBundle, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(built("gpt-oss-published", "int8").checkpoint, checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    name = "model.layers.2.mlp.experts.down_proj_scales"
    weights[name] = weights[name][:, :-1].copy()
    save_file(weights, checkpoint / "model.safetensors")
    refused(checkpoint, tmp_path, name)


def test_fewer_experts_than_config_json_says_are_refused(
    built: BuildBundle, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(built("gpt-oss-published", "int8").checkpoint, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config["num_local_experts"] += 1
    (checkpoint / "config.json").write_text(json.dumps(config))
    refused(checkpoint, tmp_path, "gate_up_proj_blocks has no expert 8|router.weight")


def test_the_packager_is_told_what_each_grade_does(built: BuildBundle) -> None:
    method = Checkpoint(built("gpt-oss-published", "int8").checkpoint).packing
    assert method is not None
    grades = FAMILIES["gpt_oss"].precisions
    for precision in ("int8", "w8a8"):
        assert "stores the same" in treatment(method, precision, grades)
    assert "rounds them again" in treatment(method, "int4", grades)
    assert "stores what they mean" in treatment(method, "fp16", grades)
