"""Steps are tried as they will be replayed, and what cannot be replayed is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import decode
from appliance.bundle.specs import DecoderSpec
from appliance.compiler import golden, recording
from appliance.compiler.gpu_compile import Target
from appliance.compiler.record import Record, Refusal, why_not_faster
from appliance.compiler.recording import UNRECORDED, why_unrecorded
from installer.checkpoint.probe import open_graph
from tests.checkpoint.conftest import build_unsigned
from tests.checkpoint.families import find_models
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.vision_checkpoints import write_qwen3_vl

PROCESSOR = Target("CPUExecutionProvider", "cpu")
AS_A_GPU = Target("CPUExecutionProvider", "cuda")


WRITERS: dict[str, Callable[[Path], Path]] = {
    "qwen3": write_qwen3,
    "qwen3-vl": write_qwen3_vl,
    "qwen3.5": find_models()["qwen3.5"].write,
}


@pytest.fixture(params=WRITERS)
def bundle(request: pytest.FixtureRequest, build_once: BuildOnce) -> Path:
    name: str = request.param

    def build(directory: Path) -> None:
        build_unsigned(WRITERS[name](directory / "checkpoint"), directory / "it", precision="fp32")

    return build_once(f"recording-{name}", build) / "it"


def test_steps_at_addresses_that_stay_give_the_golden_prompts_logits(bundle: Path) -> None:
    manifest = decode((bundle / MANIFEST_NAME).read_bytes())
    graph, spec = manifest.variant("cuda"), manifest.decoder
    assert graph is not None
    assert spec is not None
    session = open_graph(bundle / graph.path, bundle / graph.weights_folder)
    wanted = golden.on_device([session], [session], spec, [("cpu", 0)])
    steps = recording._steps([session], spec, [("cpu", 0)], UNRECORDED)
    assert len(steps) == 4
    np.testing.assert_array_equal(steps[:2], wanted[-4:-2])
    if manifest.vision:
        return  # where several tokens are together, the golden prompt shows half of them an image
    pairs = recording._steps([session], spec, [("cpu", 0)], UNRECORDED, 2)
    # Of a running state all that was read is in the numbers, in whatever pieces.
    np.testing.assert_allclose(pairs[2:], wanted[-2:], rtol=0, atol=0.01 if spec.recurrent else 0)
    np.testing.assert_allclose(pairs, steps, atol=0.01 if spec.recurrent else 2e-3)


def test_a_graph_that_cannot_be_opened_to_record_is_a_reason_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    spec = DecoderSpec(layers=1, kv_heads=1, head_dim=8, vocab_size=9, context_length=64)
    graphs = [tmp_path / "model.onnx"]
    reason = why_unrecorded(graphs, spec, [AS_A_GPU])
    assert reason is not None
    assert reason.code == "not_recorded"
    assert why_unrecorded(graphs, spec, [PROCESSOR]) is None, "nothing records there"


def test_a_record_says_why_steps_are_not_replayed() -> None:
    why = Refusal(provider="cuda", code="not_recorded", message="a node stays behind")
    record = Record(
        bundle="aa", key="cc", fingerprint={}, files=(), created=1, provider="cuda", unrecorded=why
    )
    assert why_not_faster(record) == ["not replayed: a node stays behind"]
    assert not record.replays
    assert not record.replays_drafts


def test_steps_are_replayed_where_only_drafts_cannot_be() -> None:
    why = Refusal(provider="cuda", code="drafts_not_recorded", message="they differ")
    record = Record(
        bundle="aa", key="cc", fingerprint={}, files=(), created=1, provider="cuda", unrecorded=why
    )
    assert record.replays
    assert not record.replays_drafts
    assert msgspec.structs.replace(record, unrecorded=None).replays_drafts
