"""The official, unmodified OpenAI SDK against completions, embeddings and models."""

from __future__ import annotations

import base64
import struct
from typing import Any

import openai
import pytest

from appliance.pb import engine_v1_pb2 as pb
from tests.fakes.engine import CHAT, CONTEXT, DIMENSIONS, EMBEDDING, LOGPROB, RERANK, letters
from tests.shim.node import Node


def test_a_completion_goes_on_from_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=CHAT, prompt="abc")
    assert answer.choices[0].text == "abc"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 4)


def test_a_completion_ends_after_16_tokens_unless_told_otherwise(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=CHAT, prompt="x" * 40)
    assert answer.choices[0].text == "x" * 16
    assert answer.choices[0].finish_reason == "length"
    longer = client.completions.create(model=CHAT, prompt="x" * 40, max_tokens=20)
    assert longer.choices[0].text == "x" * 20


def test_a_completion_streams(lenient: openai.OpenAI) -> None:
    stream = lenient.completions.create(
        model=CHAT, prompt="abc", stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == "abc"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


def test_prompts_may_be_many_and_may_be_tokens(client: openai.OpenAI) -> None:
    texts = client.completions.create(model=CHAT, prompt=["ab", "cd"], n=2)
    assert [(c.index, c.text) for c in texts.choices] == [
        (0, "ab"),
        (1, "ab #1"),
        (2, "cd"),
        (3, "cd #1"),
    ]
    assert texts.usage is not None
    assert texts.usage.prompt_tokens == 4
    tokens = client.completions.create(model=CHAT, prompt=[97, 98])
    assert tokens.choices[0].text == "ab"
    lists = client.completions.create(model=CHAT, prompt=[[97], [98, 99]])
    assert [c.text for c in lists.choices] == ["a", "bc"]


def test_many_prompts_stream_together(lenient: openai.OpenAI) -> None:
    stream = lenient.completions.create(model=CHAT, prompt=["ab", "cd", "ef"], stream=True)
    texts = {0: "", 1: "", 2: ""}
    ends = []
    for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        if choice.finish_reason:
            ends.append(choice.index)
    assert texts == {0: "ab", 1: "cd", 2: "ef"}
    assert sorted(ends) == [0, 1, 2]


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs_have_offsets_into_the_text(
    lenient: openai.OpenAI, stream: bool
) -> None:
    given: dict[str, Any] = {"model": CHAT, "prompt": "abc", "stream": stream}
    answer = lenient.completions.create(**given, logprobs=1)
    parts = [part.choices[0].logprobs for part in (answer if stream else [answer])]
    found = [part for part in parts if part is not None]
    assert [t for part in found for t in part.tokens] == ["a", "b", "c"]
    assert [o for part in found for o in part.text_offset] == [0, 1, 2]
    assert {v for part in found for v in part.token_logprobs} == {LOGPROB}
    assert found[0].top_logprobs[0] == {"a": LOGPROB - 1}


def test_embeddings_as_floats_pass_the_strict_sdk(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=EMBEDDING, input="ab", encoding_format="float")
    assert answer.data[0].embedding == pytest.approx(letters("ab"), rel=1e-6)


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_embeddings_are_the_same_in_either_form(lenient: openai.OpenAI, form: Any) -> None:
    wanted = {} if form is None else {"encoding_format": form}
    answer = lenient.embeddings.create(model=EMBEDDING, input="banana", **wanted)
    vector = answer.data[0].embedding
    if form == "base64":
        vector = list(struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(str(vector))))
    assert vector == pytest.approx(letters("banana"), rel=1e-6)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (6, 6)


def test_embeddings_take_texts_and_tokens_in_batches(lenient: openai.OpenAI) -> None:
    texts = lenient.embeddings.create(model=EMBEDDING, input=["ab", "cde"])
    assert [item.index for item in texts.data] == [0, 1]
    assert texts.data[1].embedding == pytest.approx(letters("cde"), rel=1e-6)
    assert texts.usage.prompt_tokens == 5
    tokens = lenient.embeddings.create(model=EMBEDDING, input=[97, 98])
    assert tokens.data[0].embedding == pytest.approx(letters("ab"), rel=1e-6)
    lists = lenient.embeddings.create(model=EMBEDDING, input=[[97, 98], [99]])
    assert len(lists.data) == 2


def test_embeddings_can_be_shorter_where_the_model_can(lenient: openai.OpenAI, node: Node) -> None:
    answer = lenient.embeddings.create(model=EMBEDDING, input="ab", dimensions=4)
    assert len(answer.data[0].embedding) == 4
    with pytest.raises(openai.BadRequestError) as caught:
        lenient.embeddings.create(model=EMBEDDING, input="ab", dimensions=1000)
    assert caught.value.param == "dimensions"


def test_models_are_those_that_serve(client: openai.OpenAI, node: Node) -> None:
    assert [model.id for model in client.models.list()] == [CHAT, EMBEDDING, RERANK]
    one = client.models.retrieve(EMBEDDING)
    assert (one.id, one.owned_by, one.object) == (EMBEDDING, "appliance", "model")
    node.engine.models[EMBEDDING].state = pb.MODEL_STATE_LOADING
    assert [model.id for model in client.models.list()] == [CHAT, RERANK]


def test_a_model_says_what_it_is_for(client: openai.OpenAI) -> None:
    shown = {model.id: model.model_extra or {} for model in client.models.list()}
    assert {name: extra["kind"] for name, extra in shown.items()} == {
        CHAT: "chat",
        EMBEDDING: "embedding",
        RERANK: "rerank",
    }
    assert shown[CHAT]["context_length"] == CONTEXT
    assert shown[EMBEDDING]["dimensions"] == DIMENSIONS
    for name, able in ((CHAT, True), (EMBEDDING, False)):
        assert shown[name]["supports_tools"] is shown[name]["supports_reasoning"] is able
        assert shown[name]["supports_images"] is False


def test_a_model_that_reads_images_says_so(client: openai.OpenAI, node: Node) -> None:
    node.engine.models[CHAT].supports_images = True
    shown = client.models.retrieve(CHAT).model_extra
    assert shown is not None
    assert shown["supports_images"] is True


def test_while_a_version_drains_the_new_one_is_shown(client: openai.OpenAI, node: Node) -> None:
    newer = pb.Model()
    newer.CopyFrom(node.engine.models[CHAT])
    newer.version, newer.created = "2", newer.created + 1
    node.engine.models["newer"] = newer
    model = client.models.retrieve(CHAT)
    assert model.model_extra is not None
    assert model.model_extra["version"] == "2"
    assert len(client.models.list().data) == 3
