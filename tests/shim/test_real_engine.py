"""The endpoint in front of the real engine daemon, with tiny random models."""

from __future__ import annotations

import random
import re
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from appliance.access import KeyStore
from appliance.audit.event import Request, Response
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.encoder_checkpoints import write_qwen3_reranker
from tests.fakes.engine_node import EngineNode
from tests.shim.batch_input import begin, content, ended, line
from tests.shim.node import Node, eventually
from tests.shim.real_node import served

HELLO = [{"role": "user", "content": "hello"}]
LONG = [{"role": "user", "content": "how do I add a model to this appliance? " * 5}]


def build_models(root: Path) -> None:
    node = EngineNode(root)
    node.add(write_qwen3(root / "checkpoint"), name="chat")
    node.add(write_bert(root / "words"), name="letters")
    node.add(write_qwen3_reranker(root / "pairs"), name="judge")


node = served("shim-models", build_models, store_files=True)


def chat(node: Node, **more: object) -> dict[str, object]:
    return {"model": "chat", "messages": HELLO, "max_tokens": 8, "temperature": 0, **more}


def test_the_text_of_a_custom_tool_satisfies_its_grammar(node: Node, client: openai.OpenAI) -> None:
    grammar = 'start: ("+" | "-") WORD LF\nWORD: /[a-z ]{1,9}/\n%import common.LF'
    response = client.responses.create(
        model="chat",
        input="change it",
        temperature=1,
        tools=[
            {
                "type": "custom",
                "name": "change",
                "format": {"type": "grammar", "syntax": "lark", "definition": grammar},
            }
        ],
        tool_choice={"type": "custom", "name": "change"},
        max_output_tokens=100,
        reasoning={"effort": "none"},
    )
    (call,) = response.output
    assert call.type == "custom_tool_call"
    assert re.fullmatch(r"[+-][a-z ]{1,9}\n", call.input)


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
    assert [model.id for model in client.models.list()] == ["chat", "judge", "letters"]


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


def test_a_second_identical_request_is_cached_and_another_keys_is_not(node: Node) -> None:
    path, body = "/v1/chat/completions", chat(node, messages=LONG)
    with KeyStore(node.config.layout.keys_db) as keys:
        _, secret = keys.create("other")
    other = {"Authorization": f"Bearer {secret}"}
    queries = 'appliance_prefix_cache_queries_total{model="chat"}'
    hits = 'appliance_prefix_cache_hits_total{model="chat"}'
    before = node.metric(queries), node.metric(hits)
    answers = [
        node.request("POST", path, body),
        node.request("POST", path, body),
        node.request("POST", path, body, headers=other),
    ]
    usages = [answer.json["usage"] for answer in answers]
    prompt = usages[0]["prompt_tokens"]
    reused = prompt - 1
    assert reused > 0
    for answer, usage, cached in zip(answers, usages, (0, reused, 0), strict=True):
        assert usage["prompt_tokens"] == prompt
        assert usage["prompt_tokens_details"]["cached_tokens"] == cached
        assert node.res(answer.request_id).tokens.cached == cached
        assert node.row(answer.request_id).cached_tokens == cached
        assert answer.json["choices"][0]["message"] == answers[0].json["choices"][0]["message"]
    assert node.metric(queries) - before[0] == 3 * prompt
    assert node.metric(hits) - before[1] == reused


class Answer(BaseModel):
    number: Annotated[int, Field(ge=0, le=99)]
    word: Annotated[str, Field(max_length=8)]
    rest: Literal["yes", "no"] | None


def test_a_random_model_gives_typed_answers_and_typed_calls(
    node: Node, client: openai.OpenAI
) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    tools = [openai.pydantic_function_tool(Answer)]
    for seed in range(4):
        # A random model that thinks never stops thinking.
        more: dict[str, Any] = {
            "model": "chat", "messages": messages, "seed": seed, "reasoning_effort": "none",
        }  # fmt: skip
        whole = client.chat.completions.parse(**more, response_format=Answer)
        assert isinstance(whole.choices[0].message.parsed, Answer)
        with client.chat.completions.stream(**more, response_format=Answer) as stream:
            for _ in stream:
                continue
            assert stream.get_final_completion().choices[0].message.parsed == (
                whole.choices[0].message.parsed
            )
        called = client.chat.completions.parse(
            **more, tools=tools, tool_choice="required", parallel_tool_calls=False
        )
        assert called.choices[0].finish_reason == "tool_calls"
        (call,) = called.choices[0].message.tool_calls or []
        assert isinstance(call.function.parsed_arguments, Answer)


def test_forms_and_forced_calls_hold_in_the_other_apis_too(
    node: Node, client: openai.OpenAI
) -> None:
    parsed = client.responses.parse(
        model="chat", input="hello", reasoning={"effort": "none"}, text_format=Answer
    )
    assert isinstance(parsed.output_parsed, Answer)
    called = client.responses.parse(
        model="chat",
        input="hello",
        reasoning={"effort": "none"},
        tools=[openai.pydantic_function_tool(Answer)],
        tool_choice={"type": "function", "name": "Answer"},
    )
    (call,) = [item for item in called.output if item.type == "function_call"]
    assert isinstance(call.parsed_arguments, Answer)
    # A random model with free keys never stops adding them.
    schema = {**Answer.model_json_schema(), "additionalProperties": False}
    body = {**chat(node, max_tokens=2000, temperature=1), "thinking": {"type": "disabled"}}
    form = {"format": {"type": "json_schema", "schema": schema}}
    said = node.request("POST", "/v1/messages", {**body, "output_config": form}).json
    Answer.model_validate_json(said["content"][0]["text"])
    choice = {"type": "any", "disable_parallel_tool_use": True}
    tools = {"tools": [{"name": "f", "input_schema": schema}], "tool_choice": choice}
    used = node.request("POST", "/v1/messages", {**body, **tools}).json
    assert used["stop_reason"] == "tool_use"
    (use,) = used["content"]
    Answer.model_validate(use["input"])


def test_a_call_that_is_cut_off_is_an_answer_and_says_so(node: Node) -> None:
    tool = {"name": "f", "input_schema": {"type": "object", "required": ["a"], "properties": {
        "a": {"type": "string", "minLength": 200}}, "additionalProperties": False}}  # fmt: skip
    used = node.request(
        "POST",
        "/v1/messages",
        {
            **chat(node, max_tokens=60),
            "thinking": {"type": "disabled"},
            "tools": [tool],
            "tool_choice": {"type": "any"},
        },
    )
    assert used.status == 200
    assert used.json["stop_reason"] == "max_tokens"
    (use,) = used.json["content"]
    assert (use["type"], use["name"], use["input"]) == ("tool_use", "f", {})


def test_hostile_schemas_disturb_nobody(node: Node) -> None:
    path = "/v1/chat/completions"
    quiet = node.request("POST", path, chat(node, seed=1)).json["choices"][0]["message"]
    answers: list[int] = []

    def attack(number: int) -> None:
        patterns = [{"type": "string", "pattern": f"a.{{{n}}}b.*c"} for n in range(10, 28)]
        schema = {"allOf": patterns, "maxLength": 100 + number}
        shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        answers.append(node.request("POST", path, chat(node, response_format=shape)).status)

    attackers = [threading.Thread(target=attack, args=(number,)) for number in range(3)]
    for attacker in attackers:
        attacker.start()
    beside = [node.request("POST", path, chat(node, seed=1)) for _ in range(5)]
    for attacker in attackers:
        attacker.join()
    assert all(answer.json["choices"][0]["message"] == quiet for answer in beside)
    assert len(answers) == 3
    assert set(answers) <= {200, 400}
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
    eventually(lambda: node.metric("appliance_http_requests_in_progress") == 1)
    requests = {e.request_id for e in node.events() if isinstance(e, Request)} - seen
    bills = [e for e in node.events() if isinstance(e, Response) and e.request_id in requests]
    assert len(bills) == len(requests) == 24
    whole = [bill.tokens.generated for bill in bills if bill.outcome == "ok"]
    assert set(whole) <= {200, 400}, "only an answer that was complete is not cancelled"
    assert {bill.outcome for bill in bills} - {"ok"} == {"cancelled"}
    assert sum(bill.tokens.generated for bill in bills) == node.metric(metric) - before


def test_a_batch_and_those_who_wait_share_the_engine(node: Node) -> None:
    metric = 'appliance_engine_generation_tokens_total{model="chat"}'
    before = node.metric(metric)
    body = {"model": "chat", "messages": HELLO, "max_tokens": 20, "ignore_eos": True}
    batch_id = begin(node, [line(f"line-{n}", body=body) for n in range(40)])["id"]
    beside = [node.request("POST", "/v1/chat/completions", chat(node)) for _ in range(5)]
    batch = ended(node, batch_id)
    assert batch["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
    assert len(content(node, batch["output_file_id"])) == 40
    said = sum(answer.json["usage"]["completion_tokens"] for answer in beside)
    assert batch["usage"]["output_tokens"] == 40 * 20
    assert node.metric(metric) - before == 40 * 20 + said


def test_what_is_reserved_is_what_the_prompt_has(node: Node) -> None:
    """The tokens that admission measures are those that the engine then counts and bills."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    bodies = [
        ("/v1/chat/completions", chat(node, max_tokens=3)),
        ("/v1/chat/completions", chat(node, max_tokens=3, tools=[tool])),
        ("/v1/chat/completions", chat(node, max_tokens=3, reasoning_effort="high")),
        ("/v1/completions", {"model": "chat", "prompt": "<|im_end|> once", "max_tokens": 3}),
        ("/v1/completions", {"model": "chat", "prompt": [5, 6, 7], "max_tokens": 3}),
    ]
    with KeyStore(node.config.layout.keys_db) as keys:
        info, secret = keys.create("limited")
        keys.limit(info.id, {"tokens_per_minute": 1_000_000})
    headers = {"Authorization": f"Bearer {secret}"}
    left = 1_000_000
    for path, body in bodies:
        answer = node.request("POST", path, body, headers=headers)
        assert answer.status == 200, answer.body
        reserved = left - int(answer.headers["x-ratelimit-remaining-tokens"])
        usage = answer.json["usage"]
        assert reserved == usage["prompt_tokens"] + 3
        left -= usage["total_tokens"]


def test_embeddings_never_use_more_than_was_reserved(node: Node) -> None:
    with KeyStore(node.config.layout.keys_db) as keys:
        info, secret = keys.create("vectors")
        keys.limit(info.id, {"tokens_per_minute": 1_000_000})
    headers = {"Authorization": f"Bearer {secret}"}
    left = 1_000_000
    for text in ("a", "hello world", "\u00fc\u0301\u4e16\u754c!?", "x" * 40, "  "):
        body = {"model": "letters", "input": [text, text]}
        answer = node.request("POST", "/v1/embeddings", body, headers=headers)
        assert answer.status == 200, answer.body
        reserved = left - int(answer.headers["x-ratelimit-remaining-tokens"])
        used = answer.json["usage"]["prompt_tokens"]
        assert used <= reserved
        left -= used


def test_documents_are_ranked_and_billed_by_what_the_engine_computed(node: Node) -> None:
    metric = 'appliance_engine_prompt_tokens_total{model="judge"}'
    before = node.metric(metric)
    with KeyStore(node.config.layout.keys_db) as keys:
        info, secret = keys.create("ranking")
        keys.limit(info.id, {"tokens_per_minute": 1_000_000})
    headers = {"Authorization": f"Bearer {secret}"}
    documents = ["hello world", {"text": "\u00fc\u0301\u4e16\u754c!?"}, "", "x" * 40]
    ask = {"model": "judge", "query": "hello", "documents": documents, "return_documents": True}
    answer = node.request("POST", "/v1/rerank", ask, headers=headers)
    assert answer.status == 200, answer.body
    results, used = answer.json["results"], answer.json["usage"]["total_tokens"]
    found = [result["relevance_score"] for result in results]
    assert found == sorted(found, reverse=True)
    assert all(0 < score < 1 for score in found)
    assert node.metric(metric) - before == used == node.row(answer.request_id).prompt_tokens
    assert used <= 1_000_000 - int(answer.headers["x-ratelimit-remaining-tokens"])
    texts = ["hello world", "\u00fc\u0301\u4e16\u754c!?", "x" * 40]
    scores = {"model": "judge", "text_1": "hello", "text_2": texts}
    rows = node.request("POST", "/v1/score", scores).json["data"]
    by_text = {result["document"]["text"]: result["relevance_score"] for result in results}
    for text, row in zip(texts, rows, strict=True):
        assert row["score"] == pytest.approx(by_text[text], rel=1e-4)


def test_only_a_reranker_ranks_and_only_one_with_a_prompt_reads_instructions(node: Node) -> None:
    ask = {"query": "hello", "documents": ["a"], "instruction": "find a greeting"}
    for model in ("letters", "chat"):
        refused = node.request("POST", "/v1/rerank", {"model": model, **ask})
        assert (refused.status, refused.error["param"]) == (400, "model")
    assert node.request("POST", "/v1/rerank", {"model": "judge", **ask}).status == 200
    refused = node.request("POST", "/v1/embeddings", {"model": "judge", "input": "a"})
    assert (refused.status, refused.error["param"]) == (400, "model")
