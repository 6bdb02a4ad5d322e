"""A service tier decides who goes first and what it costs, and is told in the answer."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from appliance.access import KeyStore, new_key
from appliance.metering import PriceTable, Tariff
from appliance.pb import engine_v1_pb2 as pb
from tests.fakes.engine import CHAT
from tests.shim.node import Node, ask

CHAT_PATH = "/v1/chat/completions"
PRIORITIES = {"flex": -1, "default": 0, "auto": 0, "priority": 1, "fast": 1}
TOLD = {"flex": "flex", "default": "default", "auto": "default", "priority": "priority"} | {
    "fast": "priority"
}


@pytest.fixture
def node(node: Node) -> Node:
    """A node whose key may ask for priority."""
    key = new_key("first", priority=True)
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.add(key)
    node.secret = key.secret
    return node


def last(node: Node) -> pb.GenerateRequest:
    request = node.engine.requests[-1]
    assert isinstance(request, pb.GenerateRequest)
    return request


@pytest.mark.parametrize("tier", PRIORITIES)
def test_a_tier_is_honoured_and_told(node: Node, client: openai.OpenAI, tier: Any) -> None:
    answer = client.chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": "hello"}], service_tier=tier
    )
    assert answer.service_tier == TOLD[tier]
    assert last(node).priority == PRIORITIES[tier]
    response = client.responses.create(model=CHAT, input="hello", service_tier=tier)
    assert response.service_tier == TOLD[tier]
    assert last(node).priority == PRIORITIES[tier]
    chunks = list(
        client.chat.completions.create(
            model=CHAT,
            messages=[{"role": "user", "content": "hello"}],
            service_tier=tier,
            stream=True,
        )
    )
    assert {chunk.service_tier for chunk in chunks} == {TOLD[tier]}


def test_flex_costs_what_a_batch_costs_and_priority_what_anything_costs(node: Node) -> None:
    with PriceTable(node.config.layout.prices_db) as prices:
        prices.set(CHAT, Tariff(*[2_000_000] * 3), Tariff(*[1_000_000] * 3))
    costs = {}
    for tier in PRIORITIES:
        answer = node.request("POST", CHAT_PATH, ask(service_tier=tier, temperature=0))
        record = node.res(answer.request_id)
        assert record.batch == (tier == "flex")
        costs[tier] = record.cost / (record.tokens.prompt + record.tokens.generated)
    assert costs == {tier: 1.0 if tier == "flex" else 2.0 for tier in PRIORITIES}


def test_priority_is_for_keys_that_may(node: Node) -> None:
    with KeyStore(node.config.layout.keys_db) as keys:
        _, node.secret = keys.create("other")
    for path, body in ((CHAT_PATH, ask()), ("/v1/responses", {"model": CHAT, "input": "a"})):
        for tier in ("priority", "fast"):
            answer = node.request("POST", path, {**body, "service_tier": tier})
            assert answer.status == 403
            assert answer.error["code"] == "insufficient_permissions"
            assert answer.error["param"] == "service_tier"
        assert node.request("POST", path, {**body, "service_tier": "flex"}).status == 200


@pytest.mark.parametrize("tier", ["scale", "other", 1, ["flex"]])
def test_there_is_no_other_tier(node: Node, tier: object) -> None:
    answer = node.request("POST", CHAT_PATH, ask(service_tier=tier))
    assert (answer.status, answer.error["param"]) == (400, "service_tier")
