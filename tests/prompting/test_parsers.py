"""The parsers of generated text: what they find, however the text is cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.prompting import HermesParser, Piece, ReasoningSplitter
from tests.prompting.reading import Parser, read, splits


def thinking(opened: bool = False) -> ReasoningSplitter:
    return ReasoningSplitter("<think>", "</think>", opened=opened)


def hermes() -> HermesParser:
    numbers = itertools.count()
    return HermesParser(lambda: f"call_{next(numbers)}")


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("<think>\nhm, so\n</think>\n\nYes.", "Yes.", "hm, so"),
        ("<think>\n\n</think>\n\nYes.", "Yes.", ""),
        (" \n<think>a</think>b", "b", "a"),
        ("Yes <think>no</think>", "Yes <think>no</think>", ""),
        ("  plain", "  plain", ""),
        ("<thin", "<thin", ""),
        ("<think>cut off </thi", "", "cut off </thi"),
        ("<think>a < b </ c\n\nd</think>e\n", "e\n", "a < b </ c\n\nd"),
        ("", "", ""),
        ("</think>\n\nYes </think>", "Yes </think>", ""),
        (" </thin", " </thin", ""),
    ],
)
def test_reasoning_is_told_from_the_answer_however_the_text_is_cut(
    text: str, answer: str, reasoning: str
) -> None:
    for parts in splits(text):
        assert read(thinking(), parts) == (answer, reasoning, [])


def test_a_prompt_that_opened_the_tag_leaves_only_the_closing_one() -> None:
    for parts in splits("\nso\n</think>\n\nYes"):
        assert read(thinking(opened=True), parts) == ("Yes", "so", [])


def test_reasoning_arrives_while_it_is_generated() -> None:
    splitter = thinking()
    seen = [(splitter.feed(part), splitter.reasoning) for part in ("<think>\nfirst", " second")]
    assert seen == [([Piece(reasoning="first")], True), ([Piece(reasoning=" second")], True)]
    seen = [(splitter.feed(part), splitter.reasoning) for part in ("\n</think>", "\n\nA")]
    assert seen == [([], False), ([Piece(text="A")], False)]


ARGUMENTS = '{"city": "Os}lo", "n": [1, {"a": "\\""}]}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "answer", "calls"),
    [
        (CALL, "", [("weather", ARGUMENTS)]),
        (f"Let me see.\n{CALL}\n{CALL}\n", "Let me see.", [("weather", ARGUMENTS)] * 2),
        ("no call <tool_", "no call <tool_", []),
        ("ends with space \n", "ends with space \n", []),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "null")]),
        ("<tool_call>not json</tool_call>!", "<tool_call>not json</tool_call>!", []),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>', "",
         [("f", '{"a": "</tool_call>"}')]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>ok', "ok", [("f", '{"a": 1')]),
        ('<tool_call>{"name": "f", "arguments": {"a": "cut', "", [("f", '{"a": "cut')]),
        ('<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}")]),
        ('<tool_call>{"name": "f</tool_call>", "arguments": {}}',
         '<tool_call>{"name": "f</tool_call>", "arguments": {}}', []),
        ('<tool_call>{"name": "f\\u00e9", "parameters": {}}</tool_call>', "", [("fé", "{}")]),
    ],
)  # fmt: skip
def test_calls_are_found_however_the_text_is_cut(
    text: str, answer: str, calls: list[tuple[str, str]]
) -> None:
    expected = [(f"call_{i}", name, arguments) for i, (name, arguments) in enumerate(calls)]
    for parts in splits(text):
        assert read(hermes(), parts) == (answer, "", expected)


def test_arguments_arrive_while_they_are_generated() -> None:
    parser = hermes()
    parser.feed('<tool_call>{"name": "f", "arguments": ')
    (begin, first) = parser.feed('{"a": ')
    assert begin.tool_call is not None
    assert begin.tool_call.name == "f"
    assert first.tool_call is not None
    assert first.tool_call.arguments_json == '{"a": '
    (second,) = parser.feed("12")
    assert second.tool_call is not None
    assert second.tool_call.arguments_json == "12"


TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "</", "<tool_", "</thi", "<", "/"]
JSON = ['{"name": "f", "arguments": ', '"name": ', '"x"', "{", "}", "[", "]", ",", '"', "\\"]
FRAGMENTS = st.lists(st.sampled_from([*TAGS, *JSON, "\n", " ", "a"]), max_size=14).map("".join)


@settings(max_examples=400, deadline=None)
@given(FRAGMENTS, st.randoms(use_true_random=False))
@example("\n<tool_call>\n</tool_call> x", None)
def test_the_cut_never_matters(text: str, random: object) -> None:
    makers: tuple[Callable[[], Parser], ...] = (thinking, lambda: thinking(opened=True), hermes)
    for make in makers:
        whole = read(make(), [text])
        assert read(make(), list(text)) == whole
        for place in range(len(text)):
            assert read(make(), [text[:place], text[place:]]) == whole


@settings(max_examples=200, deadline=None)
@given(
    st.text(min_size=1, max_size=10),
    st.dictionaries(
        st.text(max_size=5), st.text(max_size=10) | st.integers() | st.none(), max_size=4
    ),
)
def test_any_call_that_a_model_writes_in_json_comes_back(
    name: str, arguments: dict[str, object]
) -> None:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    text = f"<tool_call>\n{body}\n</tool_call>"
    answer, _, calls = read(hermes(), text)
    if "</tool_call>" not in name:
        assert answer == ""
        ((_, found, raw),) = calls
        assert (found, json.loads(raw)) == (name, arguments)


def test_a_hostile_head_costs_linear_time() -> None:
    parser = hermes()
    parser.feed("<tool_call>")
    for _ in range(40_000):
        parser.feed('{"name": ')
    assert parser.finish()[0].text.startswith("<tool_call>")
