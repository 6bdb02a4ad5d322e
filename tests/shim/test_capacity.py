"""A key moved to dedicated capacity asks the engine with a share; its answers stay the same."""

from __future__ import annotations

import openai

from appliance.access import ALL_MODELS, KeyStore
from tests.fakes.engine import CHAT
from tests.shim.node import Node
from tests.shim.test_service_tier import last


def said(client: openai.OpenAI, **more: object) -> dict[str, object]:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "hello"}],
        **more,  # type: ignore[call-overload]
    )
    shown: dict[str, object] = answer.model_dump(exclude={"id", "created"})
    return shown


def test_a_reserve_holds_from_the_next_request_and_changes_no_answer(
    node: Node, client: openai.OpenAI
) -> None:
    said(client)
    before = said(client)  # with the prompt in the cache, as all that follow
    assert not last(node).HasField("share")
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.reserve(node.key.id, ALL_MODELS, 25)
        keys.projects.reserve("default", ALL_MODELS, 10)
        assert said(client) == before
        assert (last(node).share.owner, last(node).share.percent) == (node.key.id, 25)
        keys.reserve(node.key.id, CHAT, 40)
        said(client)
        assert last(node).share.percent == 40
        said(client, service_tier="flex")
        assert not last(node).HasField("share"), "what waits runs in what others leave"
        keys.reserve(node.key.id, CHAT, None)
        keys.reserve(node.key.id, ALL_MODELS, None)
        said(client)
        assert last(node).share.percent == 10
        keys.projects.reserve("default", ALL_MODELS, None)
        assert said(client) == before
        assert not last(node).HasField("share")
