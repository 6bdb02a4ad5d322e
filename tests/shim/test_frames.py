"""The bytes of a stream: what the SDKs are strict about, frame by frame."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from tests.fakes.engine import CHAT, FakeEngine, Fault
from tests.shim.node import Node, ask, prepare, running_shim


def test_a_stream_is_data_frames_that_end_with_done(node: Node) -> None:
    answer = node.stream(ask(stream=True))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    frames = list(answer)
    assert all(frame.startswith(b"data: ") and frame.count(b"\n") == 1 for frame in frames)
    assert frames[-1] == b"data: [DONE]\n"


def test_chunks_of_a_chat_follow_the_rules_of_the_sdks(node: Node) -> None:
    *chunks, done = node.stream(ask("hi", stream=True, n=2)).documents()
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["index"] for choice in choices[:2]] == [0, 1]
    roles = [choice["index"] for choice in choices if "role" in choice["delta"]]
    assert roles == [0, 1], "once for each choice, in its first chunk"
    ends = [(c["index"], c["finish_reason"]) for c in choices if c["finish_reason"] is not None]
    assert sorted(ends) == [(0, "stop"), (1, "stop")]
    assert all("usage" not in chunk for chunk in chunks), "not asked for"


def test_the_usage_chunk_is_last_and_has_no_choices(node: Node) -> None:
    *chunks, last, done = node.stream(
        ask("hi", stream=True, stream_options={"include_usage": True})
    ).documents()
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    assert all(chunk["usage"] is None for chunk in chunks)


def test_no_chunk_says_nothing(node: Node) -> None:
    *chunks, _ = node.stream(ask("hi END", stream=True, stop="END")).documents()
    for chunk in chunks[1:]:
        choice = chunk["choices"][0]
        assert choice["delta"] or choice["finish_reason"]


def test_the_whole_answer_has_every_required_field(node: Node) -> None:
    document = node.request("POST", "/v1/chat/completions", ask("hi")).json
    assert document["object"] == "chat.completion"
    assert set(document) == {
        "id",
        "object",
        "created",
        "model",
        "choices",
        "usage",
        "system_fingerprint",
        "service_tier",
    }
    assert document["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


def test_an_error_in_the_middle_is_one_frame_and_no_done(node: Node) -> None:
    node.engine.behaviour.fault = Fault(grpc.StatusCode.INTERNAL, after_tokens=1)
    answer = node.stream(ask(stream=True))
    *chunks, last = answer.documents()
    assert answer.status == 200
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "h"]
    assert set(last) == {"error"}
    assert set(last["error"]) == {"message", "type", "code", "param"}
    assert last["error"]["type"] == "server_error"


def test_silence_is_broken_by_comments_that_the_sdk_ignores(tmp_path: Path) -> None:
    config = prepare(tmp_path, keepalive_seconds=0.05)
    with FakeEngine(config.layout.engine_socket) as engine, running_shim(config):
        node = Node(config, engine)
        engine.behaviour.pause_after = 1
        frames = []
        for frame in node.stream(ask("hi", stream=True)):
            frames.append(frame)
            if frames.count(b": ping\n") == 3:
                engine.behaviour.release.set()
        text = [json.loads(f[6:]) for f in frames if f.startswith(b"data: {")]
    assert frames.count(b": ping\n") >= 3
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in text) == "hi"


@pytest.mark.parametrize("text", ["\u00e9\u4e2d\U0001f600", "a\nb\r\nc", 'quote " and \\'])
def test_any_text_fits_into_a_frame(node: Node, text: str) -> None:
    *chunks, _ = node.stream(ask(text, stream=True)).documents()
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == text


def test_completions_stream_as_text_completion_objects(node: Node) -> None:
    body = {"model": CHAT, "prompt": "ab", "stream": True}
    *chunks, done = node.stream(body, "/v1/completions").documents()
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, None, "stop"]
