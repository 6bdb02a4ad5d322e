"""Building a bundle takes memory for the largest tensor, not for the checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from installer.checkpoint.quantize import Precision
from installer.checkpoint.reader import Checkpoint
from tests.checkpoint.conftest import build_unsigned
from tests.checkpoint.drawn import draw_checkpoint
from tests.checkpoint.families.qwen3_moe import QWEN3_MOE
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.encoder_checkpoints import write_qwen3_embedding
from tests.fakes.packers import Fp8, write_packed
from tests.sweeps import rarely

LARGE = os.environ.get("APPLIANCE_TEST_FULL") == "1"
SCRIPT = """\
import sys
from pathlib import Path
from installer.checkpoint import build_bundle
build_bundle(Path(sys.argv[1]), Path(sys.argv[2]), name="m", version="1", precision=sys.argv[3],
             signer=None)
"""
ALLOWANCE = 200_000_000
"""The interpreter and the libraries take most of this before the first tensor is read."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many layers and no large tensor: a build that kept the checkpoint would break the bound."""
    return write_qwen3(
        tmp_path_factory.mktemp("checkpoint"),
        vocab=4096,
        hidden=1024,
        layers=96 if LARGE else 9,
        heads=16,
        kv_heads=8,
        head_dim=64,
        intermediate=3072,
        tied=False,
        dtype="bfloat16",
        max_shard_bytes=100_000_000,
    )


@pytest.mark.parametrize(
    "precision",
    ["int4", *rarely(["fp16", "fp8", "fp32"])],
)
def test_peak_memory_follows_the_largest_tensor(
    checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    largest = 4096 * 1024 * 2
    assert size > 3 * largest + ALLOWANCE, "too small a checkpoint to show anything"
    peak = _peak_anonymous_memory(checkpoint, tmp_path / "bundle", precision)
    # What 8-bit floats stand for has 32 bits while a graph is tried, and is transposed then; in
    # 32 bits a tensor is twice what is stored, and is there once more when it is transposed.
    widened = {"fp8": 4 * 2 * largest, "fp32": 2 * 2 * largest}.get(precision, 0)
    assert peak <= 3 * largest + widened + ALLOWANCE


@pytest.mark.parametrize("precision", ["int8", *rarely(["fp32"])])
@pytest.mark.parametrize("family", ["bert", *rarely(["qwen3-embedding"])])
def test_so_does_that_of_a_model_that_reads(tmp_path: Path, family: str, precision: str) -> None:
    checkpoint = tmp_path / "checkpoint"
    write = write_bert if family == "bert" else write_qwen3_embedding
    write(checkpoint, hidden=1024, layers=12 if LARGE else 6, intermediate=4096)
    largest = 4 * 1024 * 4096
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert size > 4 * largest + ALLOWANCE
    assert _peak_anonymous_memory(checkpoint, tmp_path / "it", precision) <= 4 * largest + ALLOWANCE


def test_eight_bit_floats_are_widened_a_run_of_rows_at_a_time(tmp_path: Path) -> None:
    plain = write_qwen3(tmp_path / "plain", hidden=512, layers=1, intermediate=16_384)
    write_packed(plain, tmp_path / "packed", Fp8(128))
    tensors, name = Checkpoint(tmp_path / "packed").tensors, "model.layers.0.mlp.up_proj.weight"
    meant = 16_384 * 512 * 4
    tracemalloc.start()
    try:
        read = sum(rows.nbytes for rows in tensors.rows(name))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == meant
    # The bytes of one run, its floats, their scales, and the run before.
    assert peak < meant // 2


@pytest.mark.parametrize("precision", ["w8a8", "fp16"])
def test_stacks_of_experts_are_written_expert_by_expert(
    tmp_path: Path, precision: Precision
) -> None:
    wide = {"hidden_size": 512, "moe_intermediate_size": 128, "num_experts": 64}
    config = {**QWEN3_MOE, **wide, "num_hidden_layers": 1}
    checkpoint = draw_checkpoint(tmp_path / "checkpoint", config)
    stack = 64 * 3 * 128 * 512 * 4
    tracemalloc.start()
    try:
        build_unsigned(checkpoint, tmp_path / "bundle", precision=precision)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A run of rows, and the scales of all: integers are a quarter of this, or an eighth.
    assert peak < stack // 8


def _peak_anonymous_memory(checkpoint: Path, out: Path, precision: str) -> int:
    """Largest RssAnon of a build in its own process, sampled; bytes.

    Mapped weights are left out: their pages are the page cache's, and the system takes them back
    at will.
    """
    command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(out), precision]
    process = subprocess.Popen(command)
    status = Path(f"/proc/{process.pid}/status")
    peak = 0
    while process.poll() is None:
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.005)
    assert process.returncode == 0
    return peak
