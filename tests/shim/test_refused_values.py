"""A value that cannot be taken is answered with its place, what may stand there, and what did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.engine import CHAT, EMBEDDING
from tests.shim.node import Node, ask, standing

CHAT_PATH = "/v1/chat/completions"
MISFITS: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 3}, "temperature", "a number from 0 to 2, but got 3 "),
    ({"temperature": "hot"}, "temperature", "a number from 0 to 2, but got 'hot' "),
    ({"top_p": 0}, "top_p", "a number above 0 and up to 1, but got 0 "),
    ({"n": 0}, "n", "a whole number from 1 to 128, but got 0 "),
    ({"n": 1.5}, "n", "a whole number from 1 to 128, but got 1.5 "),
    ({"model": None}, "model", "a string, but got null "),
    ({"messages": []}, "messages", "an array of at least 1 entry, but got an empty array "),
    ({"stop": ["a"] * 17}, "stop", "or an array of up to 16 entries, but got an array of 17 "),
    ({"stop": "a" * 2000}, "stop", "a string of 1 to 1024 characters or "),
    ({"stop": "a" * 2000}, "stop", "but got a string of 2000 characters "),
    ({"stream": "yes"}, "stream", "a boolean, but got 'yes' "),
    ({"logit_bias": {"7": 101}}, "logit_bias", "one of the values of `logit_bias`"),
    ({"logit_bias": {"7": 101}}, "logit_bias", "a number from -100 to 100"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "a name in `logit_bias`: expected a whole number"),
    ({"service_tier": "gold"}, "service_tier", "one of 'auto', 'default', 'fast', 'flex', "),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'function', but got 'web_search' "),
    ({"tool_choice": 7}, "tool_choice", "an object or one of 'auto', 'none', 'required', but "),
    (
        {"messages": [{"role": "function", "name": "f", "content": "a"}]},
        "messages[0].role",
        "one of 'system', 'developer', 'user', 'assistant', 'tool', but got 'function' ",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        "messages[0].content[0].type",
        "one of 'text', 'image_url', but got 'audio' ",
    ),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with standing(tmp_path_factory.mktemp("node"), store_files=True) as made:
        yield made


@pytest.mark.parametrize(("change", "param", "words"), MISFITS)
def test_a_value_out_of_bounds_is_answered_with_the_whole_range(
    shared: Node, change: dict[str, Any], param: str, words: str
) -> None:
    answer = shared.request("POST", CHAT_PATH, {**ask(), **change})
    error = answer.json["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "invalid_value", param)
    assert error["message"].startswith(("Invalid value for `", "Invalid value for "))
    assert words in error["message"]
    assert error["message"].endswith("; correct it; GET /docs says what it is for")


def test_a_body_that_is_no_object_is_said_so(shared: Node) -> None:
    error = shared.request("POST", CHAT_PATH, [1]).json["error"]
    assert "the body: expected an object, but got an array of 1" in error["message"]


def test_queries_and_anthropic_s_routes_say_the_same(shared: Node) -> None:
    query = shared.request("GET", "/v1/files?limit=0").json["error"]
    assert query["param"] == "limit"
    assert "a whole number from 1 to 10000, but got '0' instead" in query["message"]
    body = {**ask(max_tokens=9), "temperature": 1.5}
    error = shared.request("POST", "/v1/messages", body).json["error"]
    assert error["message"].startswith("Invalid value for `temperature`: expected a number from 0")


def test_null_for_a_known_parameter_that_is_not_possible_here_asks_for_nothing(
    shared: Node,
) -> None:
    unasked = {"functions": None, "audio": None, "web_search_options": None}
    assert shared.request("POST", CHAT_PATH, {**ask(), **unasked}).status == 200
    response = {"model": CHAT, "input": "a", "conversation": None, "prompt": None}
    assert shared.request("POST", "/v1/responses", response).status == 200
    assert shared.request("POST", CHAT_PATH, {**ask(), **unasked, "audio": {}}).status == 400


def test_null_for_a_parameter_that_nobody_knows_is_refused(shared: Node) -> None:
    answer = shared.request("POST", CHAT_PATH, {**ask(), "audio": None, "colour": None})
    assert (answer.status, answer.json["error"]["code"]) == (400, "unknown_parameter")


def test_a_name_that_stands_twice_is_refused_beside_an_unasked_one_too(shared: Node) -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "audio": null, '
    answer = shared.request(
        "POST", CHAT_PATH, body + b'"n": 1, "n": 2}', headers={"Content-Type": "application/json"}
    )
    assert (answer.status, answer.json["error"]["code"]) == (400, "duplicate_name")


def test_the_input_type_of_other_embedding_apis_is_refused_with_what_to_do(shared: Node) -> None:
    body = {"model": EMBEDDING, "input": "a", "input_type": "query"}
    answer = shared.request("POST", "/v1/embeddings", body)
    assert (answer.status, answer.json["error"]["code"]) == (400, "unsupported_parameter")
    assert "into the text" in answer.json["error"]["message"]
