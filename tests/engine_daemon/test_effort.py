"""How much a model is to reason: its template's degrees, and no silence where it always does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.config import EngineSettings
from appliance.engine.chat_model import ChatModel
from appliance.engine_daemon.asked import encode_chat
from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from tests.conftest import BuildOnce
from tests.engine.conftest import open_model_of
from tests.engine.test_call_formats import build_node


@pytest.fixture(scope="module")
def model(build_once: BuildOnce) -> Iterator[ChatModel]:
    """It speaks harmony, whose template reads `reasoning_effort`."""
    root = build_once("formats-node", build_node)
    opened = open_model_of(root, "every", EngineSettings(threads=1, cache_bytes=64 << 20))
    assert isinstance(opened, ChatModel)
    yield opened
    opened.close()


def chat(mode: pb.ThinkingMode) -> pb.ChatPrompt:
    question = pb.ChatMessage(role="user", content=[pb.ContentPart(text="Hi")])
    return pb.ChatPrompt(messages=[question], thinking=mode)


def test_degrees_reach_the_template(model: ChatModel) -> None:
    assert model.prompting.reasoning == "levels"
    words = {
        pb.THINKING_MODE_DEFAULT: "medium",
        pb.THINKING_MODE_ON: "medium",
        pb.THINKING_MODE_LOW: "low",
        pb.THINKING_MODE_MEDIUM: "medium",
        pb.THINKING_MODE_HIGH: "high",
    }
    for mode, word in words.items():
        ids = encode_chat(model, chat(mode)).ids
        assert f"Effort {word}." in model.tokenizer.decode(ids)


def test_a_model_that_always_reasons_does_not_promise_that_it_will_not(model: ChatModel) -> None:
    with pytest.raises(RequestError, match="always reasons") as refused:
        encode_chat(model, chat(pb.THINKING_MODE_OFF))
    assert refused.value.param == "thinking"
