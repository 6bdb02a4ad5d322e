"""Bundles of the first release go on being served: their graphs name rows in another way."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import decode
from appliance.compiler import compile_in_process
from appliance.engine.cache_budget import CacheShape, token_bytes
from appliance.engine.model_runner import ModelRunner
from appliance.engine.session import open_session
from appliance.engine.slot_pool import Array, SlotPool
from appliance.scheduler import Plan, PrefillChunk, Sequence
from installer.checkpoint import build_bundle
from tests.conftest import REPOSITORY
from tests.fakes.checkpoints import write_qwen3

GOLDEN = REPOSITORY / "tests/golden/0.1/decoder"


def test_a_bundle_of_the_first_release_computes_what_it_did(tmp_path: Path) -> None:
    checkpoint = write_qwen3(
        tmp_path / "checkpoint",
        vocab=300,
        hidden=32,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=16,
        intermediate=32,
        context=64,
    )
    new = tmp_path / "new"
    build_bundle(
        checkpoint, new, name="tiny", version="1.0", precision="fp32", signer=None, created=0
    )
    assert b"last_index" in (GOLDEN / "graph/cpu/model.onnx").read_bytes()
    assert b"last_index" not in (new / "graph/cpu/model.onnx").read_bytes()
    assert np.allclose(_steps(GOLDEN, tmp_path / "a"), _steps(new, tmp_path / "b"), atol=1e-5)


def _steps(bundle: Path, artifact: Path) -> Array:
    """Logits of two prompts, the first in two pieces, and of a step of both."""
    compile_in_process(bundle, artifact, python=Path(sys.executable))
    spec = decode((bundle / MANIFEST_NAME).read_bytes()).decoder
    assert spec is not None
    pool = SlotPool(spec, CacheShape(2, 32, token_bytes(spec)))
    runner = ModelRunner(open_session(artifact, 1), pool, spec.vocab_size, 16)
    one, other = Sequence(range(20, 30)), Sequence(range(50, 53))
    runner.run(Plan(prefills=(PrefillChunk(one, 0, 0, 6),)))
    plan = Plan(prefills=(PrefillChunk(one, 0, 6, 4), PrefillChunk(other, 1, 0, 3)))
    rows = [runner.run(plan).copy()]
    for sequence in (one, other):
        sequence.computed = len(sequence.tokens)
        sequence.tokens.append(7)
    rows.append(runner.run(Plan(decodes=(one, other))).copy())
    return np.concatenate(rows)
