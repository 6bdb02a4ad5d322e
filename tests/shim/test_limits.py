"""Limits hold under load, say exactly where one stands, and change without a restart."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import anthropic
import openai
import pytest

from appliance.access import NODE_TAG, KeyStore
from appliance.audit import AuditLog
from appliance.audit.event import Reject, Request, Response
from appliance.metering import Clock, PriceTable, Tariff
from appliance.shim.rate_limit_headers import span
from tests.fakes.engine import CHAT, EMBEDDING, FakeEngine
from tests.shim.node import Answer, Node, ask, eventually, prepare, running_shim

CHAT_PATH = "/v1/chat/completions"
PROMPT = len("user: hello\n")
ANSWER = len("hello") + 1
PENNY = Tariff(1_000_000, 1_000_000, 1_000_000)


class Hands:
    """A clock whose hands a test moves; wall time stays near the real one."""

    def __init__(self) -> None:
        self.moved = 0.0
        self.steady = 1000.0
        self.clock = Clock(wall=lambda: time.time() + self.moved, steady=lambda: self.steady)


@contextmanager
def timed(root: Path, hands: Hands) -> Iterator[Node]:
    config = prepare(root)
    with FakeEngine(config.layout.engine_socket) as engine, running_shim(config, hands.clock):
        yield Node(config, engine)


def limit(node: Node, **limits: int | None) -> None:
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.limit(node.key.id, limits)


def limit_project(node: Node, **limits: int | None) -> None:
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.projects.limit("default", limits)


def price(node: Node, tariff: Tariff = PENNY, batch: Tariff | None = None) -> None:
    with PriceTable(node.config.layout.prices_db) as prices:
        prices.set(CHAT, tariff, batch)


def chat(node: Node, **more: object) -> Answer:
    return node.request("POST", CHAT_PATH, ask(**more))  # type: ignore[arg-type]


def limits_of(answer: Answer) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {k.removeprefix(prefix): v for k, v in answer.headers.items() if k.startswith(prefix)}


def test_a_hundred_requests_at_the_edge_of_a_budget_do_not_overspend(node: Node) -> None:
    """The budget is one request short of what they all need."""
    node.engine.behaviour.seconds_per_step = 0.002
    node.engine.behaviour.slots = 1000
    each = PROMPT + 6
    price(node)
    budget = 100 * each - 1
    limit(node, tokens_per_day=budget, money_per_day=budget)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: chat(node, max_tokens=6), range(100)))
    statuses = Counter(answer.status for answer in answers)
    refused = [answer.error["code"] for answer in answers if answer.status == 429]
    assert set(statuses) <= {200, 429}
    assert len(refused) >= 1
    assert set(refused) <= {"insufficient_quota", "rate_limit_exceeded"}
    spent = [e for e in node.events() if isinstance(e, Response)]
    assert sum(e.tokens.prompt + e.tokens.generated for e in spent) <= budget
    assert sum(e.cost for e in spent) <= budget
    assert len(spent) == statuses[200] > 50


def test_open_ended_requests_at_the_edge_of_a_budget_do_not_overspend(node: Node) -> None:
    node.engine.behaviour.slots = 1000
    limit_project(node, tokens_per_month=500)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: chat(node, ignore_eos=True), range(40)))
    spent = [e for e in node.events() if isinstance(e, Response)]
    assert sum(e.tokens.prompt + e.tokens.generated for e in spent) <= 500
    assert {answer.status for answer in answers} == {200, 429}


def test_an_answer_without_a_limit_ends_where_the_budget_does(node: Node) -> None:
    limit(node, tokens_per_day=PROMPT + 10)
    answer = chat(node, ignore_eos=True)
    assert answer.json["choices"][0]["finish_reason"] == "length"
    assert answer.json["usage"]["total_tokens"] == PROMPT + 10
    again = chat(node)
    assert (again.status, again.error["code"]) == (429, "insufficient_quota")


def test_choices_and_prompts_are_reserved_together(node: Node) -> None:
    limit(node, tokens_per_day=PROMPT + 3 * 20)
    assert chat(node, n=4, max_tokens=20).error["code"] == "insufficient_quota"
    assert chat(node, n=3, max_tokens=20).status == 200
    limit(node, tokens_per_day=None)
    limit_project(node, tokens_per_day=1000)
    body = {"model": CHAT, "prompt": ["ab", "abc"], "max_tokens": 600}
    assert node.request("POST", "/v1/completions", body).error["code"] == "insufficient_quota"
    body["max_tokens"] = 4
    assert node.request("POST", "/v1/completions", body).status == 200


def test_what_stands_behind_an_answer_is_reserved_with_it(node: Node) -> None:
    limit(node, tokens_per_day=40)
    body = {"model": CHAT, "prompt": "a", "suffix": "b" * 40, "max_tokens": 1}
    refused = node.request("POST", "/v1/completions", body)
    assert refused.error["code"] == "insufficient_quota"
    body["suffix"] = "b" * 20
    assert node.request("POST", "/v1/completions", body).status == 200


def test_a_used_up_budget_is_refused_before_the_engine_computes(
    node: Node, client: openai.OpenAI
) -> None:
    limit(node, tokens_per_day=PROMPT + ANSWER)
    assert chat(node, max_tokens=ANSWER).status == 200
    computed = len(node.engine.calls)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "a"}])
    assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
    headers = caught.value.response.headers
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers
    assert len(node.engine.calls) == computed
    assert node.reject(headers["x-request-id"]).code == "insufficient_quota"


@pytest.mark.parametrize("limits", [{"tokens_per_day": 1}, {"tokens_per_minute": 1}])
def test_neither_sdk_repeats_what_is_beyond_a_limit(node: Node, limits: dict[str, int]) -> None:
    limit(node, **limits)
    before = len(node.events())
    with (
        openai.OpenAI(base_url=node.base_url, api_key=node.secret, max_retries=5) as client,
        pytest.raises(openai.RateLimitError),
    ):
        client.responses.create(model=CHAT, input="a", max_output_tokens=8)
    url = node.base_url.removesuffix("/v1")
    with (
        anthropic.Anthropic(base_url=url, api_key=node.secret, max_retries=5) as claude,
        pytest.raises(anthropic.RateLimitError),
    ):
        claude.messages.create(
            model=CHAT, max_tokens=8, messages=[{"role": "user", "content": "a"}]
        )
    assert len(node.events()) == before + 2, "one REJECT each"


def test_the_sdk_does_not_retry_a_used_up_budget_and_does_retry_a_busy_one(node: Node) -> None:
    limit(node, tokens_per_day=1)
    with openai.OpenAI(base_url=node.base_url, api_key=node.secret, max_retries=20) as client:
        before = len(node.events())
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "a"}])
        assert len(node.events()) == before + 1, "one REJECT: nothing was tried again"
        limit(node, tokens_per_day=None, parallel_requests=1)
        node.engine.behaviour.pause_after = 1
        stream = node.stream(ask(stream=True))
        release = threading.Thread(target=release_when_busy, args=(node,))
        release.start()
        answer = client.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": "a"}]
        )
        assert answer.choices[0].message.content == "a"
        stream.documents()
        release.join()


def release_when_busy(node: Node) -> None:
    """Let the engine go on when somebody was refused who asks again later."""
    code = "rate_limit_exceeded"
    eventually(lambda: [e for e in node.events() if isinstance(e, Reject) and e.code == code])
    node.engine.behaviour.release.set()


def test_embeddings_are_limited_too(node: Node) -> None:
    limit(node, tokens_per_day=20, requests_per_minute=3)
    body = {"model": EMBEDDING, "input": "abcdef"}
    answer = node.request("POST", "/v1/embeddings", body)
    assert (answer.status, limits_of(answer)["remaining-requests"]) == (200, "2")
    body["input"] = "a" * 30
    assert node.request("POST", "/v1/embeddings", body).error["code"] == "insufficient_quota"


def test_headers_are_exact(tmp_path: Path) -> None:
    hands = Hands()
    with timed(tmp_path, hands) as node:
        assert limits_of(chat(node)) == {}
        limit(node, requests_per_minute=3, tokens_per_minute=100)
        answer = chat(node, max_tokens=20)
        assert limits_of(answer) == {
            "limit-requests": "3",
            "remaining-requests": "2",
            "reset-requests": "1m0s",
            "limit-tokens": "100",
            "remaining-tokens": str(100 - PROMPT - 20),
            "reset-tokens": "1m0s",
        }
        node.row(answer.request_id)
        hands.steady += 51.36
        answer = chat(node, max_tokens=20)
        headers = limits_of(answer)
        assert headers["remaining-requests"] == "1"
        assert headers["remaining-tokens"] == str(100 - PROMPT - ANSWER - PROMPT - 20)
        chat(node, max_tokens=1)
        refused = chat(node, max_tokens=1)
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert refused.error["type"] == "rate_limit_error"
        assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("9", "8640")
        assert limits_of(refused)["remaining-requests"] == "0"
        hands.steady += 8.64
        assert chat(node, max_tokens=1).status == 200
        hands.steady += 60
        too_large = chat(node, max_tokens=101)
        assert too_large.headers["x-should-retry"] == "false"
        assert "retry-after" not in too_large.headers


def test_a_streams_head_has_them_too(node: Node) -> None:
    limit(node, requests_per_minute=3)
    answer = node.stream(ask(stream=True))
    assert answer.headers["x-ratelimit-remaining-requests"] == "2"
    answer.documents()


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0ms"),
        (20, "20ms"),
        (1000, "1s"),
        (8640, "8.64s"),
        (60_000, "1m0s"),
        (61_005, "1m1.005s"),
    ],
)
def test_a_span_is_written_as_openai_writes_it(milliseconds: int, text: str) -> None:
    assert span(milliseconds) == text


def test_a_limit_holds_for_the_next_request_and_is_lifted_for_the_next(node: Node) -> None:
    assert chat(node).status == 200
    limit(node, requests_per_minute=1)
    assert [chat(node).status for _ in range(2)] == [200, 429]
    limit(node, requests_per_minute=None)
    assert chat(node).status == 200


def test_parallel_requests_of_a_project_are_counted_over_its_keys(node: Node) -> None:
    limit_project(node, parallel_requests=1)
    with KeyStore(node.config.layout.keys_db) as keys:
        _, secret = keys.create("other")
    node.engine.behaviour.pause_after = 1
    stream = node.stream(ask(stream=True))
    headers = {"Authorization": f"Bearer {secret}"}
    refused = node.request("POST", CHAT_PATH, ask(), headers=headers)
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    stream.hang_up()
    eventually(
        lambda: node.request("POST", CHAT_PATH, ask(max_tokens=1), headers=headers).status == 200
    )


def test_what_was_used_before_a_restart_is_not_forgotten(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    with FakeEngine(config.layout.engine_socket) as engine:
        with running_shim(config):
            node = Node(config, engine)
            assert chat(node).status == 200
        with running_shim(config):
            limit(node, tokens_per_month=PROMPT + ANSWER)
            assert chat(node, max_tokens=1).error["code"] == "insufficient_quota"
            limit(node, tokens_per_month=2 * (PROMPT + ANSWER))
            assert chat(node, max_tokens=ANSWER).status == 200


def test_what_the_node_asks_itself_neither_needs_a_projects_budget_nor_uses_it(
    tmp_path: Path,
) -> None:
    """A budget that is used up fails no proof of an installation, and a benchmark uses none up."""
    config = prepare(tmp_path)
    with KeyStore(config.layout.keys_db) as keys:
        _, secret = keys.create("a proof", tags=(NODE_TAG,))
    own = {"Authorization": f"Bearer {secret}"}
    with FakeEngine(config.layout.engine_socket) as engine:
        node = Node(config, engine)
        limit_project(node, tokens_per_month=PROMPT + ANSWER)
        with running_shim(config):
            for _ in range(3):
                assert node.request("POST", CHAT_PATH, ask(), headers=own).status == 200
        with running_shim(config):
            assert chat(node, max_tokens=ANSWER).status == 200
            assert chat(node, max_tokens=1).error["code"] == "insufficient_quota"
            assert node.request("POST", CHAT_PATH, ask(), headers=own).status == 200


def test_a_limit_of_the_nodes_own_key_outlives_a_restart(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    with KeyStore(config.layout.keys_db) as keys:
        key, secret = keys.create("a proof", tags=(NODE_TAG,))
        keys.limit(key.id, {"tokens_per_month": PROMPT + ANSWER})
    own = {"Authorization": f"Bearer {secret}"}
    with FakeEngine(config.layout.engine_socket) as engine:
        node = Node(config, engine)
        with running_shim(config):
            assert node.request("POST", CHAT_PATH, ask(), headers=own).status == 200
        with running_shim(config):
            refused = node.request("POST", CHAT_PATH, ask(max_tokens=1), headers=own)
            assert refused.error["code"] == "insufficient_quota"


def test_a_crash_frees_what_was_reserved_and_charges_nothing_for_it(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    layout = config.layout
    with FakeEngine(layout.engine_socket) as engine:
        node = Node(config, engine)
        lost = Request(request_id="req_lost", key_id=node.key.id, route=CHAT_PATH, model=CHAT)
        with AuditLog.open(layout.audit, layout.audit_key, config.audit) as log:
            log.append([lost])  # admitted, and the process ended
        limit(node, tokens_per_day=PROMPT + ANSWER, parallel_requests=1)
        with running_shim(config):
            assert chat(node, max_tokens=ANSWER).status == 200
            assert node.res("req_lost").outcome == "aborted"
            assert chat(node, max_tokens=ANSWER).error["code"] == "insufficient_quota"


def test_a_request_that_the_engine_refuses_gives_its_reservation_back(node: Node) -> None:
    limit(node, tokens_per_day=PROMPT + 6, parallel_requests=1)
    node.engine.behaviour.slots = 0
    assert chat(node, max_tokens=6).error["code"] == "capacity"
    node.engine.behaviour.slots = 64
    assert chat(node, max_tokens=6).status == 200


def test_a_lost_caller_is_charged_for_what_was_computed(node: Node) -> None:
    limit(node, tokens_per_day=PROMPT + 50)
    node.engine.behaviour.pause_after = 3
    stream = node.stream(ask(stream=True, max_tokens=50))
    next(iter(stream))
    stream.hang_up()
    res = node.res(stream.request_id)
    used = res.tokens.prompt + res.tokens.generated
    node.engine.behaviour.release.set()
    assert chat(node, max_tokens=50 - used + 1).error["code"] == "insufficient_quota"
    assert chat(node, max_tokens=50 - used).status == 200


def test_a_day_ends_at_midnight(tmp_path: Path) -> None:
    hands = Hands()
    with timed(tmp_path, hands) as node:
        limit(node, tokens_per_day=PROMPT + ANSWER)
        assert chat(node, max_tokens=ANSWER).status == 200
        assert chat(node, max_tokens=ANSWER).status == 429
        hands.moved = 86_400.0
        assert chat(node, max_tokens=ANSWER).status == 200


def test_the_price_at_admission_stands_on_the_record_and_the_row(node: Node) -> None:
    price(node, Tariff(2_000_000, 500_000, 3_000_000))
    node.engine.behaviour.pause_after = 1
    stream = node.stream(ask(stream=True))
    eventually(lambda: [e for e in node.events() if isinstance(e, Request)])
    price(node, Tariff(9_000_000, 9_000_000, 9_000_000))
    node.engine.behaviour.release.set()
    stream.documents()
    res, row = node.res(stream.request_id), node.row(stream.request_id)
    assert (res.price, res.cost) == (1, 2 * PROMPT + 3 * ANSWER)
    assert (row.price, row.cost, row.project) == (1, res.cost, node.key.project)
    answer = chat(node)
    cached = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    assert node.res(answer.request_id).cost == 9 * (PROMPT + ANSWER)
    assert node.res(answer.request_id).price == 2


def test_a_model_without_a_price_leaves_records_as_they_were(node: Node) -> None:
    res = node.res(chat(node).request_id)
    assert (res.v, res.price, res.cost) == (1, 0, 0)
