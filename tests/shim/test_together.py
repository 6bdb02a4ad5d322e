"""Events that the engine sends in one message: callers see what they would see one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import generate_latest

from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.exchange import Exchange
from appliance.shim.metrics import Metrics
from appliance.shim.token_times import TokenTimes
from tests.fakes.engine import CHAT
from tests.shim.node import Node, ask

_VOLATILE = frozenset({"id", "created", "created_at", "completed_at", "item_id", "response_id"})
_BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": ask("hello there", n=2, stream_options={"include_usage": True}),
    "/v1/completions": {"model": CHAT, "prompt": ["hello", "good day"], "logprobs": 2},
    "/v1/responses": {"model": CHAT, "input": "hello there"},
    "/v1/messages": ask("hello there", max_tokens=100),
}


@pytest.fixture(params=[2, 5, 64])
def together(node: Node, request: pytest.FixtureRequest) -> Iterator[int]:
    yield request.param
    node.engine.behaviour.together = 1


def seen(node: Node, path: str, together: int) -> list[Any]:
    """Every event of an answer, without what differs from one request to the next."""
    _let(node, together)
    return [
        _plain(event) for event in node.stream(_BODIES[path] | {"stream": True}, path).documents()
    ]


def _let(node: Node, together: int) -> None:
    """Send so many in a message, to a request whose prompt nobody has asked before."""
    node.engine.behaviour.together = together
    node.engine.prefixes.clear()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in _VOLATILE}
    return [_plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", _BODIES)
def test_each_delta_stays_an_event_of_its_own(node: Node, path: str, together: int) -> None:
    one_by_one, at_once = seen(node, path, 1), seen(node, path, together)
    if path == "/v1/completions":  # two prompts are two calls: which one is first is chance
        one_by_one, at_once = (sorted(map(str, events)) for events in (one_by_one, at_once))
    assert at_once == one_by_one


def test_the_bill_is_the_same(node: Node, together: int) -> None:
    tokens = []
    for count in (1, together):
        _let(node, count)
        stream = node.stream(ask("hello", n=3, stream=True))
        stream.documents()
        res = node.res(stream.request_id)
        tokens.append((res.tokens, res.outcome, res.finish_reason))
    assert tokens[0] == tokens[1]
    assert tokens[0][0].delivered == 21


def test_an_answer_that_is_not_streamed_is_the_same(node: Node, together: int) -> None:
    answers = []
    for count in (1, together):
        _let(node, count)
        answers.append(_plain(node.request("POST", "/v1/chat/completions", ask("hello")).json))
    assert answers[0] == answers[1]


def test_what_came_with_a_bad_end_is_said_before_it(node: Node, together: int) -> None:
    node.engine.behaviour.finish_with = pb.FINISH_REASON_ERROR
    node.engine.behaviour.together = together
    stream = node.stream(ask("hello", stream=True))
    *chunks, last = stream.documents()
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "hello"
    assert last["error"]["code"] == "engine_error"
    res = node.res(stream.request_id)
    assert (res.outcome, res.tokens.generated, res.tokens.delivered) == ("error", 6, 5)


def test_tokens_that_come_together_are_timed_once_each(node: Node, together: int) -> None:
    node.engine.behaviour.together = together
    node.stream(ask("hello there", stream=True)).documents()
    counted = node.metric(f'appliance_inter_token_latency_seconds_count{{model="{CHAT}"}}')
    # Eleven characters; those of the first message are the first, and maybe some behind it.
    assert 0 <= counted <= 11 - min(together, 11)


def test_each_token_behind_the_first_message_is_timed_once() -> None:
    metrics, exchange = Metrics(lambda: 0), Exchange("req_1", "/", model=CHAT)
    times = TokenTimes(metrics, exchange)

    async def come() -> None:
        times.note_all({0: 2, 1: 1})
        times.note_all({0: 3, 1: 0})
        times.note(1, 1)

    asyncio.run(come())
    shown = generate_latest(metrics.registry).decode()
    assert f'appliance_inter_token_latency_seconds_count{{model="{CHAT}"}} 4.0' in shown
    assert (
        f'appliance_time_to_first_token_seconds_count{{capacity="shared",model="{CHAT}"}} 1.0'
        in shown
    )
