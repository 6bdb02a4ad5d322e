"""Log and status say what computes a model, and why nothing faster does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from appliance.audit import MAX_TEXT, create_signer, read_events
from appliance.audit.event import Admin
from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import decode, digest
from appliance.compiler import Record, read_record
from appliance.config import Config, Layout
from appliance.model_store import StoredBundle
from appliance.pb import engine_v1_pb2 as pb
from appliance.trust.node_key import NodeKey
from installer.checkpoint import build_bundle
from installer.gpu_remedies import REMEDIES
from installer.models import Models, in_records
from installer.node import PrefixNode
from installer.progress import NoProgress
from installer.status import served_model
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.gpu import H100, NO_TENSORRT, machine_with, write_release


@pytest.fixture(scope="session")
def bundle(build_once: BuildOnce) -> StoredBundle:
    def build(directory: Path) -> None:
        checkpoint = write_qwen3(directory / "checkpoint")
        build_bundle(
            checkpoint, directory / "it", name="m", version="1", signer=None, precision="fp32"
        )

    directory = build_once("installer-models", build) / "it"
    data = (directory / MANIFEST_NAME).read_bytes()
    return StoredBundle("m", "1", digest(data), directory, decode(data))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A node with its keys, whose log can be written."""
    config = Config(Layout(tmp_path / "node"))
    PrefixNode(config.layout).prepare()
    NodeKey.create(config.layout.node)
    create_signer(config.layout.audit_key, "test")
    return config


def compiled(config: Config, bundle: StoredBundle, python: Path) -> Record:
    """Compile for the release of `python`; the only artifact's record."""
    models = Models(config, PrefixNode(config.layout), NoProgress(), python=python)
    models.compile([bundle])
    models.compile([bundle])
    (directory,) = (path for path in config.layout.artifacts.iterdir() if path.is_dir())
    return read_record(directory, NodeKey.load(config.layout.node).public)


def written(config: Config) -> list[Admin]:
    events = [e for _, e in read_events(config.layout.audit) if isinstance(e, Admin)]
    assert {event.action for event in events} == {"models.compile"}
    return events


def test_a_model_on_the_gpu_is_written_down_once_with_what_was_compared(
    config: Config, bundle: StoredBundle, tmp_path: Path
) -> None:
    record = compiled(config, bundle, write_release(tmp_path / "release", machine_with()))
    assert record.provider == "cuda"
    assert record.compared is not None
    events = written(config)
    assert {(event.target, event.version, event.digest) for event in events} == {
        ("m", "1", bundle.digest)
    }
    reasons = "; ".join(event.reason for event in events)
    assert reasons == (
        f"computed by cuda, golden results within {record.compared.error:.4f} of the processor's, "
        f"weights in fp16; not by tensorrt: {NO_TENSORRT}"
    )


def test_a_model_that_fell_back_says_why_in_log_and_status(
    config: Config, bundle: StoredBundle, tmp_path: Path
) -> None:
    old = machine_with(replace(H100, driver="550.54", cuda=(12, 4)))
    record = compiled(config, bundle, write_release(tmp_path / "release", old))
    (event,) = written(config)
    assert event.reason.startswith("computed by cpu; not by tensorrt or cuda: the driver 550.54")
    loaded = pb.Model(
        state=pb.MODEL_STATE_SERVING, artifact=record.key, provider="CPUExecutionProvider"
    )
    shown = served_model(config.layout, "m", bundle, loaded)
    assert shown.compiled_for == "cpu"
    assert shown.reasons == record.reasons
    assert shown.reason.startswith("not by tensorrt or cuda: the driver 550.54")
    assert (shown.golden, shown.fit) == (None, None)


def test_the_status_of_a_model_on_the_gpu_has_the_numbers(
    config: Config, bundle: StoredBundle, tmp_path: Path
) -> None:
    record = compiled(config, bundle, write_release(tmp_path / "release", machine_with()))
    shown = served_model(config.layout, "m", bundle, pb.Model(artifact=record.key))
    assert (shown.compiled_for, shown.golden, shown.fit) == ("cuda", record.compared, record.fit)
    assert shown.reason == f"not by tensorrt: {NO_TENSORRT}"


def test_a_driver_that_does_not_answer_is_said_though_nothing_was_compiled_anew(
    config: Config, bundle: StoredBundle, tmp_path: Path
) -> None:
    """Whoever installed a driver and hears nothing would think that the GPU computes."""

    class Said(NoProgress):
        def note(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    for number, code in enumerate(("no_gpu", "driver_fails")):
        machine = msgspec.structs.replace(
            machine_with(), gpu=None, code=code, reason="the NVIDIA driver does not answer"
        )
        python = write_release(tmp_path / f"release-{number}", machine)
        node = PrefixNode(config.layout)
        Models(config, node, Said(), python=python).compile([bundle])
        assert [text.startswith("m 1: computed by cpu; not by") for text in said[:1]] == (
            [True] * number
        )
    assert said[1:] == [f"to have the GPU compute: {REMEDIES['driver_fails']}"]


def test_without_the_record_the_status_says_nothing_of_reasons(
    config: Config, bundle: StoredBundle
) -> None:
    shown = served_model(config.layout, "m", bundle, pb.Model(artifact="0" * 40))
    assert (shown.compiled_for, shown.reason, shown.reasons) == ("", "", ())


def test_clauses_share_a_record_while_they_fit() -> None:
    assert in_records([]) == []
    assert in_records(["a", "b"]) == ["a; b"]
    long = "x" * (MAX_TEXT - 1)
    assert in_records(["a", long, "b"]) == ["a", long, "b"]
    assert in_records(["x" * (MAX_TEXT - 3), "b"]) == [f"{'x' * (MAX_TEXT - 3)}; b"]
