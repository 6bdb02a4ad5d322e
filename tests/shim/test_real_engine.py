"""The endpoint in front of the real engine daemon, with tiny random models."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from appliance.audit.event import Request, Response
from installer.readiness import ReadinessSocket
from tests.conftest import REPOSITORY, BuildOnce
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_node import EngineNode
from tests.shim.node import Node, eventually, prepare, running_shim

HELLO = [{"role": "user", "content": "hello"}]


def build_models(root: Path) -> None:
    node = EngineNode(root)
    node.add(write_qwen3(root / "checkpoint"), name="chat")
    node.add(write_bert(root / "words"), name="letters")


@pytest.fixture(scope="module")
def node(build_once: BuildOnce) -> Iterator[Node]:
    """A real engine daemon and a shim, over a short path for the socket's sake."""
    models = build_once("shim-models", build_models)
    with tempfile.TemporaryDirectory(prefix="shim") as directory:
        root = Path(directory) / "n"
        subprocess.run(["cp", "-a", models, root], check=True)
        config = prepare(root)
        readiness = ReadinessSocket()
        engine = subprocess.Popen(
            [sys.executable, "-m", "appliance.engine_daemon", "--root", root],
            env=readiness.environment,
            cwd=REPOSITORY,
        )
        try:
            assert readiness.wait(60, until=lambda: engine.poll() is not None)
            with running_shim(config):
                yield Node(config, FakeEngine(config.layout.engine_socket))
        finally:
            engine.terminate()
            engine.wait(30)
            readiness.close()


def chat(node: Node, **more: object) -> dict[str, object]:
    return {"model": "chat", "messages": HELLO, "max_tokens": 8, "temperature": 0, **more}


def test_the_strict_sdk_chats_streams_completes_and_embeds(
    node: Node, client: openai.OpenAI
) -> None:
    whole = client.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=8,
        temperature=0,
        n=2,
        logprobs=True,
        top_logprobs=2,
    )
    assert whole.usage is not None
    assert 2 <= whole.usage.completion_tokens <= 16
    stream = client.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=8,
        temperature=0,
        stream=True,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content == whole.choices[1].message.content
    completion = client.completions.create(model="chat", prompt=["a", "b"], max_tokens=4)
    assert len(completion.choices) == 2
    vectors = client.embeddings.create(
        model="letters", input=["one", "two"], encoding_format="float"
    )
    assert len(vectors.data) == 2
    assert [model.id for model in client.models.list()] == ["chat", "letters"]


def test_all_apis_for_chat_say_and_count_the_same(node: Node, client: openai.OpenAI) -> None:
    whole = node.request("POST", "/v1/chat/completions", chat(node)).json
    response = client.responses.create(
        model="chat", input="hello", max_output_tokens=8, temperature=0
    )
    message = node.request("POST", "/v1/messages", chat(node)).json
    texts = [block["text"] for block in message["content"] if block["type"] == "text"]
    assert response.output_text == "".join(texts) == whole["choices"][0]["message"]["content"]
    assert response.usage is not None
    counted = node.request("POST", "/tokenize", {"model": "chat", "messages": HELLO}).json
    counted_too = node.request(
        "POST", "/v1/messages/count_tokens", {"model": "chat", "messages": HELLO}
    ).json
    prompt = whole["usage"]["prompt_tokens"]
    assert counted["count"] == counted_too["input_tokens"] == prompt
    assert response.usage.input_tokens == prompt
    assert response.usage.output_tokens == whole["usage"]["completion_tokens"]
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == prompt
    assert usage["output_tokens"] == whole["usage"]["completion_tokens"]


@pytest.mark.parametrize("model", ["chat", "letters"])
def test_tokens_become_text_again(node: Node, model: str) -> None:
    ids = node.request("POST", "/tokenize", {"model": model, "prompt": "one two"}).json["tokens"]
    text = node.request("POST", "/detokenize", {"model": model, "tokens": ids}).json["prompt"]
    assert "one two" in text
    beyond = node.request("POST", "/detokenize", {"model": model, "tokens": [1 << 30]})
    assert (beyond.status, beyond.error["param"]) == (400, "tokens")


def test_an_echo_of_token_ids_is_their_text(client: openai.OpenAI, node: Node) -> None:
    ids = node.request("POST", "/tokenize", {"model": "chat", "prompt": "one two"}).json["tokens"]
    echoed = client.completions.create(
        model="chat", prompt=ids, max_tokens=2, temperature=0, echo=True
    )
    plain = client.completions.create(model="chat", prompt=ids, max_tokens=2, temperature=0)
    assert echoed.choices[0].text == "one two" + plain.choices[0].text


def test_errors_of_the_engine_have_codes_and_parameters(node: Node) -> None:
    path = "/v1/chat/completions"
    cases = {
        "model_not_found": (404, chat(node, model="gpt-9")),
        "context_length_exceeded": (
            400,
            chat(node, messages=[{"role": "user", "content": "word " * 50_000}]),
        ),
    }
    for code, (status, body) in cases.items():
        answer = node.request("POST", path, body)
        assert (answer.status, answer.error["code"]) == (status, code)
    wrong = node.request("POST", path, chat(node, model="letters"))
    assert (wrong.status, wrong.error["param"]) == (400, "model")
    assert node.request("GET", "/health").json["status"] == "ok"


def test_the_sum_of_all_bills_is_what_the_engine_computed(node: Node) -> None:
    metric = 'appliance_engine_generation_tokens_total{model="chat"}'
    before = node.metric(metric)
    seen = {e.request_id for e in node.events() if isinstance(e, Response)}
    chance = random.Random(3)
    waits = [chance.uniform(0.005, 0.3) for _ in range(24)]

    def hang_up(number: int) -> None:
        body = chat(node, stream=True, max_tokens=200, n=1 + number % 2, ignore_eos=True)
        answer = node.stream(body)
        time.sleep(waits[number])
        answer.hang_up()

    threads = [threading.Thread(target=hang_up, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: node.metric("appliance_http_requests_in_progress") == 1, 30)
    requests = {e.request_id for e in node.events() if isinstance(e, Request)} - seen
    bills = [e for e in node.events() if isinstance(e, Response) and e.request_id in requests]
    assert len(bills) == len(requests) == 24
    assert {bill.outcome for bill in bills} == {"cancelled"}
    assert sum(bill.tokens.generated for bill in bills) == node.metric(metric) - before
