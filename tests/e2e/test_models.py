"""Adding, choosing and removing models never interrupts what is being served."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from installer.checkpoint import build_bundle
from tests.e2e.prefix import Installed, Prefix, new_prefix
from tests.fakes.checkpoints import write_bert
from tests.fakes.media import make_trust
from tests.fakes.node_media import CHAT, EMBEDDING, NodeMedia


@dataclass(frozen=True, slots=True)
class ServingNode:
    """A prefix that serves, a key for it, and what was done to its models, by any test."""

    prefix: Prefix
    key: str
    done: set[str] = field(default_factory=set)

    def models(self, action: str, *arguments: str) -> None:
        """`appliance models` with what is noted as `models.action`."""
        self.prefix.run("models", action, *arguments)
        self.done.add("deactivate" if "--active" in arguments else action)


@dataclass(slots=True)
class Stream:
    """A long answer, read in the background to its end."""

    node: ServingNode
    begun: threading.Event = field(default_factory=threading.Event)
    frames: list[str] = field(default_factory=list)
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        assert self.begun.wait(180)

    def finish(self) -> None:
        """Wait for the end, which must be a proper one."""
        self.thread.join(180)
        assert self.frames[-1] == "[DONE]", self.frames[-3:]
        assert not any('"error"' in frame for frame in self.frames)

    def _read(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.node.prefix.port, timeout=180)
        headers = {
            "authorization": f"Bearer {self.node.key}",
            "content-type": "application/json",
        }
        document = {
            "model": CHAT,
            "messages": [{"role": "user", "content": "tell me everything"}],
            "max_tokens": 400,
            "stream": True,
        }
        connection.request("POST", "/v1/chat/completions", json.dumps(document), headers)
        for line in connection.getresponse():
            if line.startswith(b"data: "):
                self.frames.append(line[6:].decode().strip())
                self.begun.set()
        connection.close()


@pytest.fixture(scope="module")
def node(
    node_media: NodeMedia, installed: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServingNode]:
    prefix = installed.lend_programs(new_prefix(tmp_path_factory.mktemp("models") / "n"))
    key = prefix.install(node_media)["api_key"]
    with prefix.serving():
        yield ServingNode(prefix, key)


@pytest.fixture
def with_newer(node: ServingNode, node_media: NodeMedia) -> ServingNode:
    """The chat model's newer version is there beside the one that is served."""
    if "2.0" not in versions(node, CHAT):
        node.models("add", str(node_media.newer_chat))
    return node


@pytest.fixture
def without_newer(node: ServingNode) -> ServingNode:
    """The chat model has one version."""
    if "2.0" in versions(node, CHAT):
        node.models("remove", CHAT, "2.0")
    return node


@pytest.fixture
def with_embedding(node: ServingNode, node_media: NodeMedia) -> ServingNode:
    """All models of the media are there."""
    if not versions(node, EMBEDDING):
        node.models("add", str(node_media.media))
    return node


@pytest.fixture
def without_embedding(node: ServingNode) -> ServingNode:
    """The embedding model is away."""
    if versions(node, EMBEDDING):
        node.models("remove", EMBEDDING, "1.0", "--active")
    return node


def versions(node: ServingNode, name: str) -> dict[str, bool]:
    """Version -> whether it is active."""
    rows: list[dict[str, Any]] = node.prefix.run("models", "list")["models"]
    return {row["version"]: row["active"] for row in rows if row["name"] == name}


def served(node: ServingNode, name: str) -> str:
    """The version that the engine serves."""
    rows: list[dict[str, Any]] = node.prefix.run("status")["models"]
    (row,) = [row for row in rows if row["name"] == name]
    assert row["state"] == "serving"
    version: str = row["version"]
    return version


def test_a_new_version_is_added_beside_the_one_that_is_served(
    without_newer: ServingNode, node_media: NodeMedia
) -> None:
    node = without_newer
    stream = Stream(node)
    node.models("add", str(node_media.newer_chat))
    assert versions(node, CHAT) == {"1.0": True, "2.0": False}
    assert served(node, CHAT) == "1.0"
    stream.finish()


def test_activating_and_rolling_back_let_running_answers_end(with_newer: ServingNode) -> None:
    node = with_newer
    for command, expected in ((["activate", CHAT, "2.0"], "2.0"), (["rollback"], "1.0")):
        stream = Stream(node)
        node.models(*command)
        assert served(node, CHAT) == expected
        node.prefix.chat(node.key, CHAT)
        stream.finish()


@pytest.mark.usefixtures("with_newer", "with_embedding")
def test_adding_again_changes_nothing(node: ServingNode, node_media: NodeMedia) -> None:
    before = node.prefix.run("models", "list")
    node.models("add", str(node_media.newer_chat))
    node.models("add", str(node_media.media))
    assert node.prefix.run("models", "list") == before


@pytest.mark.usefixtures("with_newer", "with_embedding")
def test_an_inactive_version_can_be_removed_and_an_active_one_only_on_purpose(
    node: ServingNode,
) -> None:
    node.models("remove", CHAT, "2.0")
    assert versions(node, CHAT) == {"1.0": True}
    done = _raw(node, "models", "remove", EMBEDDING, "1.0")
    assert done.returncode == 4
    node.models("remove", EMBEDDING, "1.0", "--active")
    assert versions(node, EMBEDDING) == {}
    node.prefix.chat(node.key, CHAT)


def test_a_model_that_was_away_is_served_as_soon_as_it_is_added(
    without_embedding: ServingNode, node_media: NodeMedia
) -> None:
    node = without_embedding
    node.models("add", str(node_media.media))
    assert versions(node, EMBEDDING) == {"1.0": True}
    assert any(node.prefix.embed(node.key, EMBEDDING, "hello"))


def test_a_bundle_signed_by_strangers_is_refused(node: ServingNode, tmp_path: Path) -> None:
    write_bert(tmp_path / "checkpoint")
    bundle = tmp_path / "bundle"
    build_bundle(
        tmp_path / "checkpoint", bundle, name="stranger", version="1.0", precision="fp32",
        signer=make_trust(tmp_path / "trust"),
    )  # fmt: skip
    done = _raw(node, "models", "add", str(bundle))
    assert done.returncode == 5
    assert json.loads(done.stderr)["error"]["code"] == "signer_unknown"
    assert versions(node, "stranger") == {}


@pytest.mark.usefixtures("with_embedding")
def test_every_change_is_in_the_audit_log(with_newer: ServingNode, node_media: NodeMedia) -> None:
    """Those of the tests before it, or if it runs alone its own."""
    node = with_newer
    changes = ("add", "activate", "rollback", "remove", "deactivate")
    if not node.done.issuperset(changes):
        node.models("activate", CHAT, "2.0")
        node.models("rollback")
        node.models("remove", CHAT, "2.0")
        node.models("remove", EMBEDDING, "1.0", "--active")
        node.models("add", str(node_media.media))
    layout_audit = node.prefix.root / "var/lib/appliance/audit"
    text = b"".join(path.read_bytes() for path in (layout_audit / "segments").iterdir())
    for action in changes:
        assert f'"models.{action}"'.encode() in text, action
    node.prefix.run("audit", "verify")


def _raw(node: ServingNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(node.prefix.command), *arguments, "--root", str(node.prefix.root), "--json"]
    return subprocess.run(command, capture_output=True, text=True)
