"""Errors arrive in the official SDK as its own exceptions."""

from __future__ import annotations

import grpc
import openai
import pytest

from tests.fakes.engine import CHAT, CONTEXT, EMBEDDING, Fault
from tests.shim.node import Node
from tests.shim.test_sdk_chat import HELLO


def test_a_wrong_key_is_an_authentication_error(client: openai.OpenAI) -> None:
    stranger = client.with_options(api_key="sk-wrong")
    with pytest.raises(openai.AuthenticationError) as caught:
        stranger.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id is not None


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_a_model_of_the_wrong_kind_is_a_bad_request_that_names_the_parameter(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=EMBEDDING, messages=HELLO)
    assert (caught.value.param, caught.value.code) == ("model", "wrong_model_kind")


def test_a_prompt_beyond_the_context_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": "x" * CONTEXT}]
        )
    assert caught.value.code == "context_length_exceeded"


def test_a_full_queue_is_a_rate_limit_with_a_time_to_wait(
    client: openai.OpenAI, node: Node
) -> None:
    node.engine.behaviour.slots = 0
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=CHAT, messages=HELLO)
    assert caught.value.response.headers["retry-after"] == "1"


def test_the_sdk_waits_for_an_engine_that_comes_back(node: Node) -> None:
    node.engine.stop()
    with openai.OpenAI(base_url=node.base_url, api_key=node.secret, max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model=CHAT, messages=HELLO)
        assert caught.value.status_code == 503
        assert caught.value.code == "engine_unavailable"
        assert caught.value.response.headers["retry-after"] == "1"
        node.engine.start()
        patient = client.with_options(max_retries=20)
        answer = patient.chat.completions.create(model=CHAT, messages=HELLO)
    assert answer.choices[0].message.content == "hello"


def test_an_error_in_the_middle_of_a_stream_is_an_api_error(
    client: openai.OpenAI, node: Node
) -> None:
    node.engine.behaviour.fault = Fault(
        grpc.StatusCode.INTERNAL, "a secret of the engine", after_tokens=2
    )
    stream = client.chat.completions.create(model=CHAT, messages=HELLO, stream=True)
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "engine_error"
    assert "secret" not in caught.value.message


def test_a_timeout_is_not_retried(node: Node) -> None:
    node.engine.behaviour.fault = Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "too slow")
    with openai.OpenAI(base_url=node.base_url, api_key=node.secret, max_retries=5) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model=CHAT, messages=HELLO)
        assert caught.value.status_code == 504
    assert len(node.engine.requests) == 1
