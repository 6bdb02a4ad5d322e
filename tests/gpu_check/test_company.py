"""Two models of one process say what they say alone, or the check says that they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.compiler import Artifact, open_artifact
from appliance.config import Layout
from appliance.errors import UnsupportedError
from appliance.model_store import ModelStore, StoredBundle
from appliance.trust.node_key import NodePublicKey
from bench_peers.checkpoint import TINY
from gpu_check import company, measuring
from gpu_check.node import Node

Model = tuple[StoredBundle, Artifact]


@pytest.fixture
def model(tmp_path: Path, release: Path) -> Model:
    node = Node(tmp_path / "node")
    bundle = node.add(node.write(TINY), TINY.name, "fp16")
    node.compile(bundle, release / "venv/bin/python")
    layout = Layout(tmp_path / "node")
    key = NodePublicKey.load(layout.node / "node.pub")
    return ModelStore(layout.models).get(TINY.name), open_artifact(
        layout.artifacts, bundle.digest, key
    )


def test_who_asks_knows_what_it_is_called() -> None:
    assert measuring.COMPANY == company.COMPANY


def test_a_model_says_beside_itself_what_it_says_alone(model: Model) -> None:
    assert company.loads_beside(*model) >= 1


def test_what_differs_in_company_is_an_error(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = iter(range(100))
    monkeypatch.setattr(company, "said_by", lambda _: [{0: [next(heard)]}])
    with pytest.raises(UnsupportedError, match="something else"):
        company.loads_beside(*model)
