"""Random weights that are written quickly are still a checkpoint as everybody's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from bench_peers.checkpoint import TINY
from gpu_check import checkpoint
from gpu_check.checkpoint import write_checkpoint
from installer.checkpoint.reader import Checkpoint


@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_is_there_and_no_two_rows_are_equal(
    tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SHARD", 1 << 20)
    monkeypatch.setattr(checkpoint, "_BLOCK", 65_537)
    shape = replace(TINY, intermediate=500)
    write_checkpoint(shape, tmp_path, tied=tied)
    tensors = Checkpoint(tmp_path).tensors
    assert len(tensors.files) > 1
    assert ("lm_head.weight" in tensors) is not tied
    for name in tensors.names():
        if name.endswith("norm.weight"):
            continue
        values = np.concatenate(list(tensors.rows(name)))
        assert values.shape == tensors.shape(name)
        assert len(np.unique(values, axis=0)) == len(values), name
        assert 2**-6 <= np.abs(values).min() <= np.abs(values).max() < 2**-5
        assert abs(values.mean()) < 1e-3


def test_the_public_library_reads_the_same(tmp_path: Path) -> None:
    write_checkpoint(TINY, tmp_path, tied=True)
    tensors = Checkpoint(tmp_path).tensors
    name = "model.layers.1.mlp.down_proj.weight"
    ours = np.concatenate(list(tensors.rows(name)))
    with safe_open(tmp_path / tensors.file_of(name), framework="np") as file:
        assert np.array_equal(file.get_tensor(name).astype(np.float32), ours)
