"""/v1/models for the official, unmodified Anthropic SDK, beside OpenAI's on the same path."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest

from tests.fakes.engine import CHAT, CONTEXT, EMBEDDING
from tests.shim.node import Node


def test_the_list_has_the_models_that_messages_may_name(claude: anthropic.Anthropic) -> None:
    page = claude.models.list()
    (model,) = [model for model in page if model.id == CHAT]
    assert EMBEDDING not in [model.id for model in page]
    assert (model.type, model.display_name, model.lifecycle) == ("model", CHAT, "active")
    assert model.max_input_tokens == model.max_tokens == CONTEXT
    assert model.created_at.tzinfo is not None
    assert page.has_more is False
    assert page.first_id == page.data[0].id
    assert claude.models.retrieve(CHAT) == model


def test_pages_of_models_follow_each_other(claude: anthropic.Anthropic, node: Node) -> None:
    every = [model.id for model in claude.models.list()]
    assert [model.id for model in claude.models.list(limit=1)] == every
    if len(every) > 1:
        assert [m.id for m in claude.models.list(before_id=every[1]).data] == every[:1]
    assert claude.models.list(lifecycle=["retired"]).data == []
    assert [m.id for m in claude.models.list(lifecycle=["retired", "active"])] == every
    for wrong in ("after_id=nobody", "limit=0", "colour=red", f"after_id={CHAT}&before_id={CHAT}"):
        answer = node.request(
            "GET", f"/v1/models?{wrong}", headers={"anthropic-version": "2023-06-01"}
        )
        assert (answer.status, answer.json["type"]) == (400, "error")


def test_what_is_not_for_messages_is_not_found_in_anthropic_s_shape(
    claude: anthropic.Anthropic,
) -> None:
    for name in (EMBEDDING, "nobody"):
        with pytest.raises(anthropic.NotFoundError) as caught:
            claude.models.retrieve(name)
        body: Any = caught.value.body
        assert body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="sk-wrong").models.list()


@pytest.mark.parametrize("header", ["x-api-key", "anthropic-version"])
def test_either_header_says_that_the_caller_speaks_anthropic_s_api(node: Node, header: str) -> None:
    value = {"x-api-key": node.secret, "anthropic-version": "2023-06-01"}[header]
    answer = node.request("GET", "/v1/models", headers={header: value})
    assert "has_more" in answer.json
    assert answer.headers["request-id"] == answer.request_id


def test_a_version_that_is_not_spoken_is_refused(node: Node) -> None:
    for path in ("/v1/models", f"/v1/models/{CHAT}"):
        answer = node.request("GET", path, headers={"anthropic-version": "1999-01-01"})
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")


def test_what_is_not_there_is_said_in_the_shape_of_who_asked(
    claude: anthropic.Anthropic, node: Node
) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.batches.list()
    body: Any = caught.value.body
    assert body["error"]["details"] == {"error_code": "unknown_url"}
    assert node.request("GET", "/v1/nothing").json["error"]["code"] == "unknown_url"


def test_the_openai_sdk_sees_what_it_saw(client: openai.OpenAI) -> None:
    assert {CHAT, EMBEDDING} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(EMBEDDING).object == "model"
