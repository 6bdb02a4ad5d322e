"""The published guide and the embeddings model, built, compiled and served as on a node.

Everything is real: both bundles with the precisions that the builder takes by default, the engine
daemon in its process, the endpoint, the command.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.access import KeyStore
from guide_recipe.grading import topic_of
from guide_recipe.sources import HANDBOOK, Sources, read_heldout
from installer.ask.asked import Question
from installer.cli.app import app
from tests.conftest import BuildOnce
from tests.engine_daemon.test_process import daemon
from tests.fakes.engine_node import EngineNode
from tests.guide.conftest import CHECKPOINT
from tests.shim.node import prepare, running_shim

EVERY = 9
"""The test asks every ninth held-out question: thirty or so."""


@pytest.fixture(scope="module")
def built(build_once: BuildOnce, minilm: Path) -> Path:
    def build(root: Path) -> None:
        node = EngineNode(root)
        node.add(CHECKPOINT, name="guide", precision="w8a8")
        node.add(minilm, name="minilm", precision="int8")

    return build_once("guide-node", build)


@pytest.fixture(scope="module")
def root(built: Path) -> Iterator[Path]:
    """A node that serves both models; its path is short, for the socket."""
    with tempfile.TemporaryDirectory(prefix="guide") as directory:
        root = Path(directory) / "n"
        shutil.copytree(built, root, symlinks=True)
        config = prepare(root)
        shutil.copytree(HANDBOOK, config.layout.docs / "handbook")
        config.layout.config_file.parent.mkdir(parents=True)
        config.layout.config_file.write_text(f"[api]\nlisten_port = {config.api.listen_port}\n")
        with daemon(root), running_shim(config):
            yield root


@pytest.fixture
def key(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many questions with one key."""
    with KeyStore(root / "var/lib/appliance/access/keys.db") as keys:
        monkeypatch.setenv("APPLIANCE_API_KEY", keys.create("test")[1])


def ask(root: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["ask", "--root", str(root), *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def asked() -> list[Question]:
    return list(read_heldout().on_topic[::EVERY])


def test_a_question_is_answered_in_the_handbooks_words(root: Path, sources: Sources) -> None:
    answer = ask(root, "how do I add a model from the stick?")
    assert topic_of(answer, sources.answers) == "add-a-model"


@pytest.mark.usefixtures("key")
def test_most_held_out_questions_are_answered_rightly_or_asked_back(
    root: Path, sources: Sources
) -> None:
    right = wrong = 0
    for question in asked():
        document = json.loads(ask(root, "--json", question.text))
        if document["undecided"]:
            continue
        if topic_of(document["answer"], sources.answers) == question.topic:
            right += 1
        else:
            wrong += 1
    assert right / (right + wrong) >= 0.75


@pytest.mark.usefixtures("key")
def test_it_thinks_if_asked_to_and_not_otherwise(root: Path) -> None:
    question = "which command shows the API keys?"
    assert json.loads(ask(root, "--json", "--think", question))["reasoning"]
    assert not json.loads(ask(root, "--json", question))["reasoning"]
