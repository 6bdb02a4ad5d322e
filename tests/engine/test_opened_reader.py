"""Models that read are opened on what they were compiled for, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from appliance.bundle.specs import EncoderSpec
from appliance.compiler import open_artifact
from appliance.compiler.artifact import Artifact
from appliance.compiler.libraries import has_gpu_runtime
from appliance.compiler.record import Fit
from appliance.config import EngineSettings, Layout
from appliance.engine.device.device import HostDevice
from appliance.engine.opened_reader import open_readers, tokens_at_once, warm
from appliance.engine.session import open_session
from appliance.errors import CapacityError, UnsupportedError
from appliance.model_store import ModelStore
from appliance.trust.node_key import NodePublicKey

SPEC = EncoderSpec(
    dimensions=64,
    max_length=64,
    pooling="mean",
    normalize=True,
    vocab_size=400,
    token_bytes=1 << 20,
)
SPARE = 1 << 29
BUDGET = EngineSettings(token_budget=2048)


@pytest.fixture
def artifact(node_root: Path) -> Artifact:
    """The embedder's, compiled for the processor."""
    layout = Layout(node_root)
    bundle = ModelStore(layout.models).get("words")
    key = NodePublicKey.load(layout.node / "node.pub")
    return open_artifact(layout.artifacts, bundle.digest, key)


def test_on_the_processor_nothing_has_changed(artifact: Artifact) -> None:
    (opened,) = open_readers(artifact, SPEC, EngineSettings(threads=1))
    assert opened.session.get_providers() == ["CPUExecutionProvider"]
    assert opened.token_budget == EngineSettings().sized(gpu=False).token_budget


@pytest.mark.skipif(has_gpu_runtime(), reason="the runtime for a GPU refuses in other words")
def test_what_was_compiled_for_cuda_is_never_computed_by_the_processor(
    artifact: Artifact, tmp_path: Path
) -> None:
    fit = Fit(precision="fp16", weights=1, slot=1, memory=1 << 40)
    record = msgspec.structs.replace(artifact.record, provider="cuda", fit=fit)
    copied = Path(shutil.copytree(artifact.directory, tmp_path / "it"))
    with pytest.raises(UnsupportedError, match="no runtime for a GPU"):
        open_readers(Artifact(copied, artifact.key, record), SPEC, BUDGET)
    with pytest.raises(UnsupportedError, match="CUDAExecutionProvider"):
        open_readers(
            Artifact(copied, artifact.key, record), SPEC, BUDGET, lambda: [HostDevice(1 << 40)]
        )


@pytest.mark.parametrize(
    ("free", "tokens"),
    [
        (SPARE + (64 << 20), 64),
        (SPARE + (2047 << 20), 2047),
        (SPARE + (1 << 40), 2048),
    ],
)
def test_as_many_tokens_are_computed_at_once_as_fit(free: int, tokens: int) -> None:
    assert tokens_at_once(SPEC, BUDGET, HostDevice(free)) == tokens


@pytest.mark.parametrize("free", [0, SPARE, SPARE + (64 << 20) - 1])
def test_a_gpu_without_room_for_the_longest_text_is_refused(free: int) -> None:
    with pytest.raises(CapacityError, match="64"):
        tokens_at_once(SPEC, BUDGET, HostDevice(free))


def test_what_warms_a_session_is_the_largest_batch(artifact: Artifact) -> None:
    session = open_session(artifact.directory, 1)
    for budget in (1, 64, 300):
        warm(session, SPEC, budget)
    with pytest.raises(UnsupportedError):
        warm(session, msgspec.structs.replace(SPEC, max_length=4000), 1)
