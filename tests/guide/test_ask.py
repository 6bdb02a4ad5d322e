"""`appliance ask` over a real endpoint: what it asks for, what it prints, what it leaves behind.

The engine is the fake one: its embeddings count letters, its chat model answers with the question.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from appliance.access import KeyStore
from appliance.config import Config
from appliance.errors import (
    ApplianceError,
    CapacityError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from appliance.pb import engine_v1_pb2 as pb
from guide_recipe.sources import OFF_TOPIC, read_sources
from installer.ask.guide import REFUSAL, SURE, Finding
from installer.ask.passages import Passage
from installer.ask.retrieval import FAR, Match
from installer.cli.app import app
from installer.cli.ask import KEY_NAME
from tests.fakes.engine import CHAT, EMBEDDING, FakeEngine, Fault
from tests.shim.node import prepare, running_shim

LEAD = "Revoke it: `revoke ID`."
QUESTION = "revoke it now"
PAGE = f"""\
# Letters

## Revoke a key

{LEAD}

Also asked: over; revoke.

## Buzz

Fizz buzz, fuzzy jazz.

## Xyxy

Xx.

## Yxyx

Xx.
"""
TEXTS = 4 * 2 + 2 + 1
"""Two views of each section (none has a body), what they list, and what else was asked."""


class Node:
    """A shim in front of a fake engine, with the handbook where an installation puts it."""

    def __init__(self, config: Config, engine: FakeEngine) -> None:
        self.config, self.engine, self.layout = config, engine, config.layout
        write_handbook(config)
        (self.layout.config_file.parent).mkdir(parents=True)
        self.layout.config_file.write_text(f"[api]\nlisten_port = {config.api.listen_port}\n")

    def ask(self, *arguments: str, model: str = CHAT, embeddings: str = EMBEDDING) -> Result:
        names = ["--model", model, "--embeddings", embeddings, "--root", str(self.layout.root)]
        return CliRunner().invoke(app, ["ask", *names, *arguments])

    def generated(self) -> list[pb.GenerateRequest]:
        return [r for r in self.engine.requests if isinstance(r, pb.GenerateRequest)]

    def embedded(self) -> list[int]:
        """How many texts each embedding request had."""
        return [len(r.inputs) for r in self.engine.requests if isinstance(r, pb.EmbedRequest)]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.delenv("APPLIANCE_API_KEY", raising=False)
    config = prepare(tmp_path)
    with FakeEngine(config.layout.engine_socket) as engine, running_shim(config):
        yield Node(config, engine)


def write_handbook(config: Config) -> None:
    directory = config.layout.docs / "handbook"
    directory.mkdir(parents=True)
    (directory / "letters.md").write_text(PAGE)
    (directory / "asked").mkdir()
    (directory / "asked/letters.md").write_text("# Ways\n\n## buzz\n\n- fuzz\n")


def text_of(message: pb.ChatMessage) -> str:
    return "".join(part.text for part in message.content)


def failure(result: Result) -> BaseException:
    assert result.exception is not None
    return result.exception


def test_the_passages_and_the_question_are_what_the_model_gets(node: Node) -> None:
    result = node.ask(QUESTION)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{QUESTION}\n"
    (request,) = node.generated()
    system, user = request.chat.messages
    assert (system.role, user.role) == ("system", "user")
    assert text_of(system).startswith(
        "Answer from the handbook of this appliance.\n\n[1] Revoke a key\n"
    )
    assert LEAD in text_of(system)
    assert text_of(user) == QUESTION
    assert request.sampling.temperature == 0


def test_a_word_for_word_answer_names_its_section(node: Node) -> None:
    result = node.ask(LEAD)
    assert result.stderr == "source: Revoke a key (handbook/letters.md)\n"


def test_a_command_in_other_words_comes_with_a_warning(node: Node) -> None:
    assert "check it there first" in node.ask(f"{QUESTION}: `revoke ID`").stderr
    assert node.ask(QUESTION).stderr == ""


def test_a_command_of_no_section_shown_is_not_passed_on(node: Node) -> None:
    result = node.ask(f"{QUESTION}: `revoke all`")
    assert result.stdout == f"{LEAD}\n"
    assert result.stderr == "source: Revoke a key (handbook/letters.md)\n"
    assert json.loads(node.ask(f"{QUESTION}: `no`", "--json").stdout)["source"] == "revoke-a-key"


def finding(score: float) -> Finding:
    section = Passage("revoke", "letters.md", "Revoke", LEAD, "", ())
    return Finding((Match(section, score),), frozenset({LEAD, "Fizz."}))


def test_another_sections_words_are_not_passed_on() -> None:
    assert finding(1).passed_on("Fizz.") == LEAD
    assert finding(1).passed_on("Say `revoke ID`.") == "Say `revoke ID`."
    assert finding(FAR - 1).passed_on("Fizz.") == "Fizz."


def test_what_the_guide_learnt_of_an_earlier_handbook_is_not_passed_on() -> None:
    """It copies: words of its own are those of a section as it once was."""
    stale = "Say that a proxy is needed."
    assert finding(1).passed_on(stale) == stale, "another model may use words of its own"
    copying = replace(finding(1), copies=True)
    assert copying.passed_on(stale) == LEAD
    assert copying.passed_on(LEAD) == LEAD
    assert copying.passed_on(REFUSAL) == REFUSAL
    assert replace(finding(FAR - 1), copies=True).passed_on("Hello.") == "Hello."


def test_a_refusal_is_believed_unless_a_section_surely_fits() -> None:
    assert finding(SURE - 0.1).passed_on(REFUSAL) == REFUSAL
    assert finding(SURE).passed_on(REFUSAL) == LEAD
    assert read_sources().answers[OFF_TOPIC] == REFUSAL


def test_json_has_the_answer_and_where_it_is_from(node: Node) -> None:
    document = json.loads(node.ask(LEAD, "--json").stdout)
    assert document["answer"] == LEAD
    assert document["source"] == "revoke-a-key"
    assert document["undecided"] is False
    assert document["passages"][0]["page"] == "letters.md"
    assert [p["score"] for p in document["passages"]] == sorted(
        (p["score"] for p in document["passages"]), reverse=True
    )


def test_thinking_is_asked_for_and_kept_apart(node: Node) -> None:
    result = node.ask(QUESTION, "--think")
    assert result.stdout == f"{QUESTION}\n"
    assert result.stderr.startswith("hm")
    assert json.loads(node.ask(QUESTION, "--think", "--json").stdout)["reasoning"] == "hm"
    assert json.loads(node.ask(QUESTION, "--json").stdout)["reasoning"] == ""


def test_two_equal_sections_are_named_instead_of_guessing(node: Node) -> None:
    result = node.ask("xyxy")
    assert result.stdout == "I am not sure. Did you mean:\n- Xyxy: Xx.\n- Yxyx: Xx.\n"
    document = json.loads(node.ask("xyxy", "--json").stdout)
    assert document["undecided"] is True
    assert document["answer"] is None
    assert not node.generated()


def test_the_handbook_is_embedded_once(node: Node) -> None:
    node.ask(QUESTION)
    node.ask(QUESTION)
    assert node.embedded() == [TEXTS + 1, 2]


def test_the_key_is_made_for_the_question_and_revoked(node: Node) -> None:
    node.ask(QUESTION)
    with KeyStore(node.layout.keys_db) as keys:
        (key,) = keys.list()
    assert key.name == KEY_NAME
    assert key.revoked is not None
    assert key.expires is not None


def test_the_key_is_revoked_even_if_the_answer_fails(node: Node) -> None:
    node.engine.behaviour.fault = Fault(grpc.StatusCode.UNAVAILABLE)
    assert isinstance(failure(node.ask(QUESTION)), UnavailableError)
    with KeyStore(node.layout.keys_db) as keys:
        assert all(key.revoked for key in keys.list())


def test_a_given_key_is_used_instead(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with KeyStore(node.layout.keys_db) as keys:
        info, secret = keys.create("mine")
        monkeypatch.setenv("APPLIANCE_API_KEY", secret)
        assert node.ask(QUESTION).exit_code == 0
        keys.revoke(info.id)
        assert isinstance(failure(node.ask(QUESTION)), UsageError)
        assert [key.name for key in keys.list()] == ["mine"]


@pytest.mark.parametrize("names", [{"model": "absent"}, {"embeddings": "absent"}])
def test_an_unknown_model_is_not_found(node: Node, names: dict[str, str]) -> None:
    assert isinstance(failure(node.ask(QUESTION, **names)), NotFoundError)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(grpc.StatusCode.RESOURCE_EXHAUSTED), CapacityError),
        (Fault(grpc.StatusCode.INTERNAL), UnavailableError),
        (Fault(grpc.StatusCode.UNAVAILABLE, after_tokens=3), UnavailableError),
    ],
)
def test_what_the_endpoint_says_becomes_an_error(
    node: Node, fault: Fault, kind: type[ApplianceError]
) -> None:
    node.ask(QUESTION)
    node.engine.behaviour.fault = fault
    error = failure(node.ask(QUESTION))
    assert isinstance(error, kind)
    assert error.hint


def test_a_node_that_is_down_is_unavailable(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    with KeyStore(config.layout.keys_db):
        pass
    write_handbook(config)
    result = CliRunner().invoke(app, ["ask", "--root", str(tmp_path), QUESTION])
    assert isinstance(failure(result), UnavailableError)


def test_no_node_is_not_found(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["ask", "--root", str(tmp_path), QUESTION])
    assert isinstance(failure(result), NotFoundError)
