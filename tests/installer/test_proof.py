"""A node proves itself with whatever kind of model it has."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from appliance.audit.event import Request
from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import RerankSpec
from appliance.model_store import StoredBundle
from installer.proof import prove
from tests.fakes.bundles import write_bundle
from tests.fakes.engine import EMBEDDING, RERANK
from tests.shim.node import standing


def named(manifest: Manifest, name: str) -> Manifest:
    if name == EMBEDDING:
        return manifest
    spec = RerankSpec(max_length=128)
    return msgspec.structs.replace(manifest, kind="rerank", encoder=None, reranker=spec)


@pytest.mark.parametrize(("name", "route"), [(EMBEDDING, "/v1/embeddings"), (RERANK, "/v1/rerank")])
def test_a_node_without_a_chat_model_asks_the_one_it_has(
    tmp_path: Path, name: str, route: str
) -> None:
    manifest = named(write_bundle(tmp_path / "bundle"), name)
    bundle = StoredBundle(name, "1", "0" * 64, tmp_path / "bundle", manifest)
    with standing(tmp_path / "node") as node:
        proof = prove(node.config, [bundle])
        assert (proof.model, proof.tokens) == (name, 0)
        (asked,) = (event for event in node.events() if isinstance(event, Request))
        assert (asked.route, asked.model) == (route, name)
