"""Reasoning by /v1/messages: how much, what is shown of it, and what comes back."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam

from appliance.pb import engine_v1_pb2 as pb
from tests.fakes.engine import CHAT
from tests.shim.node import Node
from tests.shim.test_sdk_anthropic import BASE, HELLO, PATH, error_of, last_request

UNSEEN: dict[str, Any] = {"type": "adaptive", "display": "omitted"}
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJg"
    "gg=="
)
LOW = {"output_config": {"effort": "low"}}


@pytest.mark.parametrize(
    ("thinking", "effort", "mode"),
    [
        (None, None, pb.THINKING_MODE_DEFAULT),
        (None, "high", pb.THINKING_MODE_DEFAULT),
        ({"type": "adaptive"}, None, pb.THINKING_MODE_DEFAULT),
        ({"type": "adaptive"}, "low", pb.THINKING_MODE_LOW),
        ({"type": "adaptive"}, "max", pb.THINKING_MODE_HIGH),
        ({"type": "enabled", "budget_tokens": 9}, None, pb.THINKING_MODE_ON),
        ({"type": "enabled", "budget_tokens": 9}, "medium", pb.THINKING_MODE_MEDIUM),
        ({"type": "disabled"}, "xhigh", pb.THINKING_MODE_OFF),
    ],
)
def test_effort_is_the_degree_of_the_thinking_that_is_asked_for(
    node: Node, thinking: object, effort: str | None, mode: pb.ThinkingMode
) -> None:
    body = {**BASE, "thinking": thinking, "output_config": {"effort": effort}}
    assert node.request("POST", PATH, body).status == 200
    assert last_request(node).chat.thinking == mode


def test_omitted_reasoning_is_out_of_sight_and_comes_back(
    claude: anthropic.Anthropic, node: Node
) -> None:
    whole = node.request("POST", PATH, {**BASE, **LOW, "thinking": UNSEEN}).json
    thought = whole["content"][0]
    assert (thought["type"], thought["thinking"]) == ("thinking", "")
    again: list[Any] = [*HELLO, {"role": "assistant", "content": whole["content"]}, *HELLO]
    claude.messages.create(model=CHAT, max_tokens=9, messages=again)
    assert last_request(node).chat.messages[1].reasoning == "hm"


def test_omitted_reasoning_is_a_block_with_a_signature_alone(node: Node) -> None:
    body = {**BASE, **LOW, "thinking": UNSEEN, "stream": True}
    events = node.stream(body, PATH).documents()
    deltas = [e["delta"] for e in events if e["type"] == "content_block_delta" and not e["index"]]
    (delta,) = deltas
    assert delta["type"] == "signature_delta"
    whole = node.request("POST", PATH, {**BASE, **LOW, "thinking": UNSEEN}).json
    assert delta["signature"] == whole["content"][0]["signature"]
    assert events[-2]["usage"]["output_tokens_details"] == {"thinking_tokens": 2}


def test_the_stream_helper_takes_a_block_without_words(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(
        model=CHAT,
        max_tokens=50,
        messages=HELLO,
        thinking={"type": "adaptive", "display": "omitted"},
        output_config={"effort": "low"},
    ) as stream:
        final = stream.get_final_message()
    thought, said = final.content
    assert thought.type == "thinking"
    assert (thought.thinking, bool(thought.signature)) == ("", True)
    assert said.type == "text"


@pytest.mark.parametrize("signature", ["unseen.!", "unseen._w", "unseen.YQ"])
def test_a_signature_that_was_altered_is_refused(node: Node, signature: str) -> None:
    block = {"type": "thinking", "thinking": "", "signature": signature}
    turn = {"role": "assistant", "content": [block, {"type": "text", "text": "a"}]}
    answer = node.request("POST", PATH, {**BASE, "messages": [*HELLO, turn, *HELLO]})
    assert answer.status == 400
    assert "`messages[1].content[0].signature`" in error_of(answer.json)["message"]


def test_a_signature_of_another_service_changes_nothing(node: Node) -> None:
    block = {"type": "thinking", "thinking": "so", "signature": "unseen.!"}
    turn = {"role": "assistant", "content": [block, {"type": "text", "text": "a"}]}
    assert node.request("POST", PATH, {**BASE, "messages": [*HELLO, turn, *HELLO]}).status == 200
    assert last_request(node).chat.messages[1].reasoning == "so"


@pytest.mark.parametrize("path", [PATH, f"{PATH}/count_tokens"])
@pytest.mark.parametrize(
    "edits", [None, [], [{"keep": "all"}], [{"keep": {"type": "all"}}]], ids=str
)
def test_an_edit_of_the_context_that_clears_nothing_is_taken(
    node: Node, path: str, edits: list[dict[str, object]] | None
) -> None:
    named = edits and [{"type": "clear_thinking_20251015", **edit} for edit in edits]
    body = {"model": CHAT, "messages": HELLO, "context_management": {"edits": named}}
    more = {"max_tokens": 9} if path == PATH else {}
    assert node.request("POST", path, {**body, **more}).status == 200


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        ({"type": "clear_thinking_20251015"}, "edits[0].keep"),
        (
            {"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 1}},
            "edits[0].keep",
        ),
        ({"type": "clear_tool_uses_20250919"}, "edits[0].type"),
        ({"type": "compact_20260112"}, "edits[0].type"),
    ],
    ids=str,
)
def test_an_edit_that_clears_something_is_refused_by_name(
    node: Node, edit: dict[str, object], place: str
) -> None:
    answer = node.request("POST", PATH, {**BASE, "context_management": {"edits": [edit]}})
    assert answer.status == 400
    assert f"`context_management.{place}" in error_of(answer.json)["message"]


def test_what_a_tool_says_of_its_transport_is_taken(node: Node) -> None:
    tool = {
        "type": "custom",
        "name": "look",
        "input_schema": {"type": "object"},
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
        "eager_input_streaming": True,
        "defer_loading": False,
        "allowed_callers": ["direct"],
    }
    messages = [{"role": "user", "content": "call look {}"}]
    body = {**BASE, "messages": messages, "tools": [tool]}
    answer = node.request(
        "POST", f"{PATH}?beta=true", body, headers={"anthropic-beta": "a-2025-01-01,b-2026-01-01"}
    )
    assert answer.json["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"defer_loading": True}, "tools[1].defer_loading"),
        ({"allowed_callers": ["code_execution_20260120"]}, "tools[1].allowed_callers[0]"),
        ({"input_examples": [{}]}, "tools[1].input_examples"),
    ],
    ids=str,
)
def test_what_a_tool_cannot_be_here_is_refused_by_name(
    node: Node, more: dict[str, object], place: str
) -> None:
    plain: ToolParam = {"name": "look", "input_schema": {"type": "object"}}
    body = {**BASE, "tools": [plain, {**plain, "name": "other", **more}]}
    answer = node.request("POST", PATH, body)
    assert answer.status == 400
    assert f"`{place}`" in error_of(answer.json)["message"]


def test_an_answer_that_the_context_ends_says_so(claude: anthropic.Anthropic, node: Node) -> None:
    node.engine.behaviour.finish_with = pb.FINISH_REASON_LENGTH
    assert claude.messages.create(**BASE).stop_reason == "model_context_window_exceeded"
    exact = len("hello") + 1
    cut = claude.messages.create(model=CHAT, max_tokens=exact, messages=HELLO)
    assert cut.stop_reason == "max_tokens"
    call: list[MessageParam] = [{"role": "user", "content": "call look {"}]
    tool: ToolParam = {"name": "look", "input_schema": {"type": "object"}}
    used = claude.messages.create(model=CHAT, max_tokens=99, messages=call, tools=[tool])
    assert used.stop_reason == "model_context_window_exceeded"
    assert used.content[-1].to_dict()["input"] == {}


def test_refusals_say_what_clients_look_for(node: Node) -> None:
    """Programs that shorten, or take out what was not readable, know it by these words."""
    image = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    cases = {
        "prompt is too long: ": "a" * 5000,
        "could not process image": [{"type": "image", "source": image}],
        "could not process PDF": [{"type": "document", "source": {}}],
    }
    for words, content in cases.items():
        body = {**BASE, "messages": [{"role": "user", "content": content}]}
        answer = node.request("POST", PATH, body)
        assert (answer.status, words in error_of(answer.json)["message"]) == (400, True), words
    stranger = node.request("POST", PATH, BASE, headers={"Authorization": "Bearer sk-wrong"})
    assert (stranger.status, stranger.headers["x-should-retry"]) == (401, "false")
