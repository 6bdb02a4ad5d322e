"""/tokenize, /detokenize, and the echo of a completion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.fakes.engine import CHAT, CONTEXT, EMBEDDING, VOCABULARY
from tests.shim.node import Node, ask, standing


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for the whole file: nothing here changes it."""
    with standing(tmp_path_factory.mktemp("node")) as made:
        yield made


def ids(text: str) -> list[int]:
    return [ord(char) for char in text]


@pytest.mark.parametrize("model", [CHAT, EMBEDDING])
def test_a_text_becomes_tokens_and_text_again(node: Node, model: str) -> None:
    answer = node.request("POST", "/tokenize", {"model": model, "prompt": "hé"})
    assert answer.json == {"count": 2, "max_model_len": CONTEXT, "tokens": ids("hé")}
    back = node.request("POST", "/detokenize", {"model": model, "tokens": answer.json["tokens"]})
    assert back.json == {"prompt": "hé"}


def test_a_conversation_has_the_tokens_that_it_is_billed_for(node: Node) -> None:
    counted = node.request("POST", "/tokenize", ask("hello")).json
    billed = node.request("POST", "/v1/chat/completions", ask("hello")).json
    assert counted["count"] == billed["usage"]["prompt_tokens"]
    assert counted["tokens"] == ids("user: hello\n")


def test_counting_is_on_record_and_costs_nothing(node: Node) -> None:
    answer = node.request("POST", "/tokenize", {"model": CHAT, "prompt": "hello"})
    assert node.req(answer.request_id).route == "/tokenize"
    assert node.row(answer.request_id).prompt_tokens == 0


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": ask()["messages"]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, 400, "tools"),
        ("/tokenize", {"prompt": "a", "x": 1}, 400, "x"),
        (
            "/tokenize",
            {"messages": ask()["messages"], "continue_final_message": True},
            400,
            "continue_final_message",
        ),
        (
            "/tokenize",
            {"messages": ask()["messages"], "add_generation_prompt": False},
            400,
            "add_generation_prompt",
        ),
        ("/tokenize", {"model": "nobody", "prompt": "a"}, 404, None),
        ("/detokenize", {"tokens": [VOCABULARY]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"model": "nobody", "tokens": []}, 404, None),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(
    node: Node, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = node.request("POST", path, {"model": CHAT, **body})
    assert (answer.status, answer.error["param"]) == (status, param)


@pytest.mark.parametrize("prompt", ["ab", ids("ab")], ids=["text", "tokens"])
def test_an_echo_stands_before_each_answer(node: Node, prompt: Any) -> None:
    with openai.OpenAI(base_url=node.base_url, api_key=node.secret, max_retries=0) as client:
        whole = client.completions.create(model=CHAT, prompt=prompt, echo=True, n=2)
        assert [choice.text for choice in whole.choices] == ["abab", "abab #1"]
        texts = {0: "", 1: ""}
        for chunk in client.completions.create(
            model=CHAT, prompt=prompt, echo=True, n=2, stream=True
        ):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == {0: "abab", 1: "abab #1"}


def test_each_prompt_has_its_own_echo(node: Node) -> None:
    body = {"model": CHAT, "prompt": ["a", "b"], "echo": True}
    choices = node.request("POST", "/v1/completions", body).json["choices"]
    assert [choice["text"] for choice in choices] == ["aa", "bb"]


def test_an_echo_has_no_log_probabilities(node: Node) -> None:
    body = {"model": CHAT, "prompt": "a", "echo": True, "logprobs": 1}
    answer = node.request("POST", "/v1/completions", body)
    assert (answer.status, answer.error["param"]) == (400, "echo")


def test_a_suffix_asks_for_what_stands_between_two_texts(client: openai.OpenAI, node: Node) -> None:
    # The fake engine says its prompt, which marks where each text ends.
    filled = client.completions.create(model=CHAT, prompt=["a", "b"], suffix="c", max_tokens=9)
    assert [choice.text for choice in filled.choices] == ["<a|c>", "<b|c>"]
    assert filled.usage is not None
    assert filled.usage.prompt_tokens == 10
    echoed = client.completions.create(model=CHAT, prompt="a", suffix="c", echo=True)
    assert echoed.choices[0].text == "a<a|c>"
    plain = client.completions.create(model=CHAT, prompt="a", suffix="")
    assert plain.choices[0].text == "a"
