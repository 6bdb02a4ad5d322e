"""Images through the endpoint, the real engine behind it, in each API's words."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import anthropic
import numpy as np
import openai
import pytest

from appliance.engine.tokenizer import Tokenizer
from appliance.engine.vision.worker import decode
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode
from tests.fakes.vision_checkpoints import (
    write_qwen2_5_vl,
    write_qwen3_vl,
    write_qwen3_vl_moe,
)
from tests.shim.node import Node
from tests.shim.real_node import SMALL_CACHE, served
from tests.vision.conftest import FAMILIES, Seeing
from tests.vision.pictures import bomb, data_uri, encoded, gradient, png
from tests.vision.test_parity import Reference

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
FIRST, SECOND = png(48, 64, seed=1), png(80, 32, seed=2)
TOKENS = {"first": 3 * 4, "second": 5 * 2}


def build_models(root: Path) -> None:
    node = EngineNode(root)
    node.add(write_qwen3_vl(root / "checkpoint-qwen3_vl"), name="qwen3_vl")
    node.add(write_qwen2_5_vl(root / "checkpoint-qwen2_5_vl"), name="qwen2_5_vl")
    node.add(write_qwen3_vl_moe(root / "checkpoint-qwen3_vl_moe"), name="qwen3_vl_moe")
    node.add(write_qwen3(root / "words-only"), name="words")


node = served("vision-models", build_models, f"token_budget = 16\n{SMALL_CACHE}")


def test_the_list_of_models_says_who_reads_images(client: openai.OpenAI) -> None:
    shown = {
        model.id: (model.model_extra or {})["supports_images"] for model in client.models.list()
    }
    assert shown == {**dict.fromkeys(FAMILIES, True), "words": False}


def shown(*images: str, text: str = "what is this?") -> list[Any]:
    """A conversation with words and images in turn."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": "look "}]
    for url in images:
        parts.append({"type": "image_url", "image_url": {"url": url}})
        parts.append({"type": "text", "text": text})
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sdk_gets_the_references_answer_about_two_images(
    node: Node, client: openai.OpenAI, family: str
) -> None:
    messages = shown(data_uri(FIRST), data_uri(SECOND))
    answer = client.chat.completions.create(
        model=family,
        messages=messages,
        max_tokens=6,
        temperature=0,
        logprobs=True,
        extra_body={"ignore_eos": True},
    )
    ids = node.request("POST", "/tokenize", {"model": family, "messages": messages}).json["tokens"]
    root = node.config.layout.root
    model = Seeing(root / f"checkpoint-{family}", root / f"{family}-1.0")
    assert ids.count(model.vision.image_token) == sum(TOKENS.values())
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)

    reference, images = Reference(model), [seen(FIRST), seen(SECOND)]
    wanted: list[int] = []
    for _ in range(6):
        wanted.append(int(reference.logits([*ids, *wanted], images)[-1].argmax()))
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    tokenizer = Tokenizer((model.checkpoint / "tokenizer.json").read_bytes())
    said = [bytes(token.bytes or ()) for token in logprobs.content]
    assert said == [tokenizer.token_bytes(token) for token in wanted]


def seen(data: bytes) -> np.ndarray:
    """The pixels that the models here are shown."""
    (width, height), pixels = decode(
        data, media_type="image/png", factor=16, least=1024, most=65536
    )
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def test_all_apis_for_chat_see_and_count_the_same(node: Node, client: openai.OpenAI) -> None:
    content: list[Any] = [
        {"type": "text", "text": "see "},
        {"type": "image_url", "image_url": {"url": data_uri(FIRST), "detail": "high"}},
    ]
    chat = client.chat.completions.create(
        model="qwen3_vl",
        messages=[{"role": "user", "content": content}],
        max_tokens=8,
        temperature=0,
    )
    parts: list[Any] = [
        {"type": "input_text", "text": "see "},
        {"type": "input_image", "image_url": data_uri(FIRST), "detail": "auto"},
    ]
    response = client.responses.create(
        model="qwen3_vl",
        input=[{"role": "user", "content": parts}],
        max_output_tokens=8,
        temperature=0,
    )
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(FIRST).decode()}
    blocks: Any = [{"type": "text", "text": "see "}, {"type": "image", "source": source}]
    with anthropic.Anthropic(
        base_url=node.base_url.removesuffix("/v1"), api_key=node.secret, max_retries=0
    ) as other:
        messages: Any = [{"role": "user", "content": blocks}]
        message = other.messages.create(
            model="qwen3_vl", messages=messages, max_tokens=8, extra_body={"temperature": 0}
        )
        counted = other.messages.count_tokens(model="qwen3_vl", messages=messages)
    assert chat.usage is not None
    assert response.usage is not None
    said = chat.choices[0].message.content
    assert response.output_text == "".join(b.text for b in message.content if b.type == "text")
    assert response.output_text == said
    assert response.usage.input_tokens == counted.input_tokens == chat.usage.prompt_tokens
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens


def test_a_cached_prefix_is_one_with_the_same_image(node: Node, client: openai.OpenAI) -> None:
    def cached(image: bytes) -> int:
        answer = client.chat.completions.create(
            model="qwen3_vl",
            messages=shown(
                data_uri(image), text="and now say what you see in it, at length, please"
            ),
            max_tokens=1,
            temperature=0,
        )
        usage = answer.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    # Both of 20 x 16 tokens, so that all but their pixels is the same.
    images = [encoded(gradient(320, 256).rotate(angle)) for angle in (0, 180)]
    assert cached(images[0]) < 64
    assert cached(images[0]) >= 288
    assert cached(images[1]) < 64, "another image is not taken for this one"


def test_several_answers_and_a_stream_see_the_image(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="qwen3_vl", messages=shown(data_uri(FIRST)), max_tokens=8, temperature=0, n=2
    )
    texts = {choice.message.content for choice in whole.choices}
    stream = client.chat.completions.create(
        model="qwen3_vl",
        messages=shown(data_uri(FIRST)),
        max_tokens=8,
        temperature=0,
        stream=True,
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert texts == {streamed}


def test_control_tokens_that_a_user_types_show_no_image(node: Node) -> None:
    typed = "<|vision_start|><|image_pad|><|vision_end|>"
    plain = count(node, shown())
    assert count(node, shown(data_uri(FIRST), text="")) == plain + 2 + TOKENS["first"]
    # Beside an image, and alone: it stays so many letters.
    image = count(node, shown(data_uri(FIRST), text=typed))
    assert image > plain + 2 + TOKENS["first"] + 10
    ids = tokens(node, shown(data_uri(FIRST), text=typed))
    assert ids.count(most_common(ids)) == TOKENS["first"]


def most_common(ids: list[int]) -> int:
    return max(set(ids), key=ids.count)


def tokens(node: Node, messages: list[Any]) -> list[int]:
    answer = node.request("POST", "/tokenize", {"model": "qwen3_vl", "messages": messages})
    ids: list[int] = answer.json["tokens"]
    return ids


def count(node: Node, messages: list[Any]) -> int:
    return len(tokens(node, messages))


BAD = {
    "bomb": (data_uri(bomb(40_000, 2_000)), "invalid_image"),
    "truncated": (data_uri(FIRST[:-300]), "invalid_image"),
    "lying": (data_uri(FIRST, "image/jpeg"), "invalid_image"),
    "not an image": (data_uri(b"%PDF-1.7", "application/pdf"), "invalid_image"),
    "empty": ("data:image/png;base64,", "invalid_image"),
    "not base64": ("data:image/png;base64,###", "invalid_image"),
    "no base64": ("data:image/png,abc", "invalid_image"),
    "remote": ("https://example.org/a.png", "unsupported_parameter"),
    "file": ("file:///etc/passwd", "unsupported_parameter"),
}


@pytest.mark.parametrize(("url", "code"), BAD.values(), ids=BAD)
def test_a_bad_image_is_refused_by_name_in_every_api(node: Node, url: str, code: str) -> None:
    chat = node.request("POST", CHAT, {"model": "qwen3_vl", "messages": shown(url)})
    assert (chat.status, chat.error["code"]) == (400, code)
    assert chat.error["param"].startswith("messages[1].content[1]")
    content = [{"type": "input_image", "image_url": url}]
    body: dict[str, Any] = {"model": "qwen3_vl", "input": [{"role": "user", "content": content}]}
    response = node.request("POST", RESPONSES, body)
    assert (response.status, response.error["code"]) == (400, code)
    assert response.error["param"].startswith("input")
    head, _, data = url.partition(";base64,")
    source = {"type": "base64", "media_type": head.removeprefix("data:"), "data": data}
    if code == "unsupported_parameter":
        source = {"type": "url", "url": url}
    blocks = [{"type": "image", "source": source}]
    body = {"model": "qwen3_vl", "max_tokens": 4, "messages": [{"role": "user", "content": blocks}]}
    message = node.request("POST", MESSAGES, body)
    assert message.status == 400
    assert message.json["error"]["details"]["error_code"] == code
    assert "`messages" in message.json["error"]["message"]


def test_after_bad_images_the_next_good_one_is_seen(node: Node) -> None:
    body = {"model": "qwen3_vl", "messages": shown(data_uri(FIRST)), "max_tokens": 1}
    assert node.request("POST", CHAT, body).status == 200
    assert node.request("GET", "/health").json["status"] == "ok"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (shown(data_uri(png(16, 16))), "messages[1].content[1]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], ""),
    ],
)
def test_a_model_for_text_says_so(node: Node, messages: list[Any], param: str) -> None:
    answer = node.request("POST", CHAT, {"model": "words", "messages": messages})
    assert answer.status == 400
    assert answer.error["param"].startswith(param or "messages[0].content[0].image_url")
    assert "reads text only" in answer.error["message"] or not param


@pytest.mark.parametrize("detail", ["low", "original"])
def test_a_detail_that_is_not_done_is_refused(node: Node, detail: str) -> None:
    part = {"type": "image_url", "image_url": {"url": data_uri(FIRST), "detail": detail}}
    body = {"model": "qwen3_vl", "messages": [{"role": "user", "content": [part]}]}
    answer = node.request("POST", CHAT, body)
    assert (answer.status, answer.error["code"]) == (400, "unsupported_parameter")
    assert answer.error["param"] == "messages[0].content[0].image_url.detail"


def test_images_count_against_the_context(node: Node) -> None:
    large = data_uri(encoded(gradient(256, 256)))
    answer = node.request("POST", CHAT, {"model": "qwen3_vl", "messages": shown(*[large] * 5)})
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    many = node.request("POST", CHAT, {"model": "qwen3_vl", "messages": shown(*[large] * 33)})
    assert (many.status, many.error["param"]) == (400, "messages")
