"""What is recorded and billed: nothing leaves unrecorded, and the bill is what was computed."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from appliance.audit.event import Admin, Request, Response, Tokens
from appliance.metering import Meter, rebuild
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.tally import Tally
from tests.fakes.engine import CHAT, DIGEST, EMBEDDING, Call, FakeEngine, Fault
from tests.shim.node import (
    PATIENCE,
    Node,
    ask,
    eventually,
    prepare,
    running_shim,
    standing,
)

CHAT_PATH = "/v1/chat/completions"
PROMPT = len("user: hello\n")
ANSWER = len("hello") + 1


def cost(call: Call) -> tuple[int, int]:
    """(prompt, generated) tokens that the engine computed for `call`."""
    prompt = max(usage.prompt_tokens for usage in call.sequences)
    return prompt, sum(usage.generated_tokens for usage in call.sequences)


def assert_billed(node: Node, request_id: str) -> Response:
    """RES and usage row of a request equal what the engine computed; returns the RES."""
    res = node.res(request_id)
    call = node.engine.calls[request_id]
    assert call.ended.wait(PATIENCE)
    assert (res.tokens.prompt, res.tokens.generated) == cost(call)
    row = node.row(request_id)
    assert (row.prompt_tokens, row.completion_tokens) == cost(call)
    assert row.outcome == res.outcome
    return res


def test_an_answer_has_one_request_record_and_one_response_record(node: Node) -> None:
    answer = node.request("POST", CHAT_PATH, ask())
    req, res = node.req(answer.request_id), assert_billed(node, answer.request_id)
    assert req.seq < res.seq
    assert (req.key_id, req.route, req.model) == (node.key.id, CHAT_PATH, CHAT)
    assert req.peer == "127.0.0.1"
    assert req.bundle_digest == res.bundle_digest == DIGEST[CHAT]
    assert (res.outcome, res.finish_reason, res.status) == ("ok", "stop", 200)
    assert res.tokens == Tokens(prompt=PROMPT, generated=ANSWER, delivered=len("hello"))


def test_the_records_are_durable_before_the_bytes_they_stand_for(node: Node) -> None:
    node.engine.behaviour.pause_after = 0
    answer = node.stream(ask(stream=True))
    frames = iter(answer)
    next(frames)
    assert node.req(answer.request_id)
    assert not [e for e in node.events() if isinstance(e, Response)]
    node.engine.behaviour.release.set()
    for frame in frames:
        if frame == b"data: [DONE]\n":
            assert [e for e in node.events() if isinstance(e, Response)]


def test_a_stream_is_billed_like_the_same_answer_in_one_piece(node: Node) -> None:
    answer = node.stream(ask(stream=True, n=2))
    answer.documents()
    res = assert_billed(node, answer.request_id)
    assert (res.outcome, res.finish_reason) == ("ok", "stop")
    assert res.tokens.delivered == len("hello") + len("hello #1")


def test_reasoning_and_cached_tokens_are_told_apart(node: Node) -> None:
    for _ in range(2):
        answer = node.request("POST", CHAT_PATH, ask(reasoning_effort="high"))
    row = node.row(answer.request_id)
    assert (row.cached_tokens, row.reasoning_tokens) == (PROMPT - 1, 2)


def test_embeddings_are_recorded_and_billed(node: Node) -> None:
    answer = node.request("POST", "/v1/embeddings", {"model": EMBEDDING, "input": ["ab", "c"]})
    req, res = node.req(answer.request_id), node.res(answer.request_id)
    assert (req.route, req.bundle_digest) == ("/v1/embeddings", DIGEST[EMBEDDING])
    assert res.tokens == Tokens(prompt=3)
    assert node.row(answer.request_id).prompt_tokens == 3


@pytest.mark.parametrize("pause_after", [0, 1, 3, 5])
def test_hanging_up_on_a_stream_stops_the_engine_and_bills_what_it_did(
    node: Node, pause_after: int
) -> None:
    node.engine.behaviour.pause_after = pause_after
    answer = node.stream(ask(stream=True))
    frames = iter(answer)
    for _ in range(1 + pause_after):
        next(frames)
    answer.hang_up()
    res = assert_billed(node, answer.request_id)
    assert node.engine.calls[answer.request_id].cancelled
    assert (res.outcome, res.status) == ("cancelled", 200)
    assert res.tokens.generated == pause_after


def test_hanging_up_on_a_whole_answer_stops_the_engine_and_bills_what_it_did(node: Node) -> None:
    node.engine.behaviour.pause_after = 2
    connection = node.connect()
    headers = {"Authorization": f"Bearer {node.secret}", "Content-Type": "application/json"}
    connection.request("POST", CHAT_PATH, _body(ask()), headers)
    call = eventually(lambda: next(iter(node.engine.calls.values()), None))
    eventually(lambda: call.sequences[0].generated_tokens == 2)
    connection.close()
    res = assert_billed(node, call.request_id)
    assert call.cancelled
    assert (res.outcome, res.status, res.tokens.delivered) == ("cancelled", 0, 0)


def test_hanging_up_before_the_engine_answers_leaves_a_record_too(node: Node) -> None:
    """It is accepted then, and held again before its first token."""
    behaviour = node.engine.behaviour
    behaviour.pause_before_accept = True
    behaviour.pause_after = 0
    connection = node.connect()
    headers = {"Authorization": f"Bearer {node.secret}", "Content-Type": "application/json"}
    connection.request("POST", CHAT_PATH, _body(ask()), headers)
    call = eventually(lambda: next(iter(node.engine.calls.values()), None))
    connection.close()
    accept, behaviour.release = behaviour.release, threading.Event()
    accept.set()
    assert assert_billed(node, call.request_id).outcome == "cancelled"


def test_hanging_up_on_embeddings_bills_what_was_computed(node: Node) -> None:
    node.engine.behaviour.pause_before_accept = True
    connection = node.connect()
    headers = {"Authorization": f"Bearer {node.secret}", "Content-Type": "application/json"}
    body = _body({"model": EMBEDDING, "input": "abc"})
    connection.request("POST", "/v1/embeddings", body, headers)
    call = eventually(lambda: next(iter(node.engine.calls.values()), None))
    connection.close()
    res = node.res(call.request_id)
    assert (res.outcome, res.status, res.tokens.prompt) == ("cancelled", 0, 3)


def test_hanging_up_at_any_moment_bills_what_was_computed(node: Node) -> None:
    """Again until enough fell into the middle, which depends on how busy the machine is."""
    node.engine.behaviour.seconds_per_step = 0.002
    chance = random.Random(7)
    outcomes: Counter[str] = Counter()

    def enough() -> bool:
        hang_up_on_sixty(node, [chance.uniform(0, 0.12) for _ in range(60)])
        eventually(lambda: node.metric("appliance_http_requests_in_progress") == 1)
        node.engine.wait_until_idle()
        requests, responses = eventually(lambda: closed(node))
        assert requests == responses
        assert set(responses.values()) <= {1}
        outcomes.update(assert_billed(node, request_id).outcome for request_id in responses)
        return outcomes["cancelled"] > 10

    eventually(enough)


def closed(node: Node) -> tuple[Counter[str], Counter[str]] | None:
    """How often each request has a REQ and a RES, once none waits for its RES."""
    events = node.events()
    requests = Counter(e.request_id for e in events if isinstance(e, Request))
    responses = Counter(e.request_id for e in events if isinstance(e, Response))
    return None if requests - responses else (requests, responses)


def hang_up_on_sixty(node: Node, waits: list[float]) -> None:
    """Callers who go after so many seconds, with or without an answer."""

    def one(number: int) -> None:
        stream = bool(number % 2)
        data = _body(ask("x" * 30, stream=stream, n=1 + number % 3))
        head = (
            f"POST {CHAT_PATH} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {node.secret}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", node.config.api.listen_port)) as caller:
            caller.sendall(head.encode() + data)
            time.sleep(waits[number])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_an_engine_that_dies_in_the_middle_bills_what_came(node: Node) -> None:
    node.engine.behaviour.pause_after = 3
    answer = node.stream(ask(stream=True))
    frames = iter(answer)
    for _ in range(4):
        next(frames)
    node.engine.stop()
    rest = list(frames)
    assert b'"error"' in rest[-1]
    res = node.res(answer.request_id)
    assert (res.outcome, res.status) == ("error", 200)
    assert res.tokens == Tokens(prompt=PROMPT, generated=3, delivered=3)


def test_an_engine_that_fails_in_the_middle_of_a_whole_answer_is_a_503(node: Node) -> None:
    node.engine.behaviour.fault = Fault(grpc.StatusCode.INTERNAL, after_tokens=3)
    answer = node.request("POST", CHAT_PATH, ask())
    assert (answer.status, answer.error["code"]) == (503, "engine_error")
    res = assert_billed(node, answer.request_id)
    assert (res.outcome, res.status, res.code) == ("error", 503, "engine_error")
    assert res.tokens.generated == 3


def test_an_answer_that_the_engine_breaks_off_is_an_error_not_an_end(node: Node) -> None:
    node.engine.behaviour.finish_with = pb.FINISH_REASON_CANCELLED
    answer = node.request("POST", CHAT_PATH, ask())
    assert (answer.status, answer.error["code"]) == (503, "engine_error")
    assert node.res(answer.request_id).outcome == "error"


def test_an_answer_that_met_its_deadline_in_the_engine_is_a_timeout(node: Node) -> None:
    node.engine.behaviour.finish_with = pb.FINISH_REASON_DEADLINE
    answer = node.request("POST", CHAT_PATH, ask())
    assert (answer.status, answer.error["code"]) == (504, "timeout")
    assert assert_billed(node, answer.request_id).code == "timeout"


def test_a_sequence_cancelled_before_it_ran_does_not_hide_what_was_cached() -> None:
    ran = pb.Usage(prompt_tokens=100, cached_tokens=64, generated_tokens=3)
    tally = Tally(100, settled=[ran, pb.Usage()])
    assert tally.tokens() == Tokens(prompt=100, cached=64, generated=3)


def test_a_request_that_takes_too_long_is_ended_and_billed(tmp_path: Path) -> None:
    config = prepare(tmp_path, request_timeout_seconds=3.0)
    with FakeEngine(config.layout.engine_socket) as engine, running_shim(config):
        node = Node(config, engine)
        engine.behaviour.pause_after = 2
        answer = node.request("POST", CHAT_PATH, ask())
        assert (answer.status, answer.error["code"]) == (504, "timeout")
        assert answer.headers["x-should-retry"] == "false"
        assert assert_billed(node, answer.request_id).code == "timeout"


def test_a_caller_that_does_not_read_holds_the_engine_no_longer_than_the_timeout(
    tmp_path: Path,
) -> None:
    config = prepare(tmp_path, request_timeout_seconds=2.0)
    with FakeEngine(config.layout.engine_socket) as engine, running_shim(config):
        node = Node(config, engine)
        body = _body(ask(stream=True, ignore_eos=True, n=16, logprobs=True, top_logprobs=20))
        head = (
            f"POST {CHAT_PATH} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {node.secret}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.connect(("127.0.0.1", config.api.listen_port))
            caller.sendall(head.encode() + body)
            call = eventually(lambda: next(iter(engine.calls.values()), None))
            assert call.ended.wait(PATIENCE)
            res = node.res(call.request_id)
        assert (res.outcome, res.code) == ("error", "timeout")
        assert call.cancelled


@contextmanager
def failing_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every flush of a file fails, as on a dying disk."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr(os, "fsync", fail)
        yield


def test_nothing_is_served_while_the_log_cannot_be_written(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = {CHAT_PATH: ask(), "/v1/embeddings": {"model": EMBEDDING, "input": "a"}}
    with failing_disk(monkeypatch):
        for path, body in bodies.items():
            answer = node.request("POST", path, body)
            assert (answer.status, answer.error["code"]) == (503, "audit_unavailable")
            assert "retry-after" in answer.headers
        assert node.request("POST", CHAT_PATH, b"{").error["code"] == "audit_unavailable"
        assert node.request("GET", "/health").json["audit"] is False
    eventually(lambda: node.request("GET", "/health").json["audit"])
    assert node.request("POST", CHAT_PATH, ask()).status == 200
    node.engine.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_cannot_be_recorded_is_not_completed(
    node: Node, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    node.engine.behaviour.pause_after = 1
    frames: list[bytes] = []

    def caller() -> None:
        if stream:
            frames.extend(node.stream(ask(stream=True)))
        else:
            frames.append(node.request("POST", CHAT_PATH, ask()).body)

    thread = threading.Thread(target=caller)
    thread.start()
    eventually(lambda: [e for e in node.events() if isinstance(e, Request)])
    node.request("GET", "/v1/nothing")  # its record is durable, so those before it are
    with failing_disk(monkeypatch):
        node.engine.behaviour.release.set()
        thread.join(PATIENCE)
    assert b"audit_unavailable" in frames[-1]
    assert b"[DONE]" not in b"".join(frames)
    assert b"chat.completion" not in frames[-1]
    (call,) = node.engine.calls.values()
    res = assert_billed(node, call.request_id)
    assert (res.outcome, res.code) == ("error", "audit_unavailable")
    assert res.status == (200 if stream else 503)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", CHAT_PATH, b"{", 400, "invalid_json"),
        ("POST", CHAT_PATH, {**ask(), "model": "gpt-9"}, 404, "model_not_found"),
        ("POST", CHAT_PATH, {**ask(), "audio": {}}, 400, "unsupported_parameter"),
        ("GET", "/v1/secret-plans", None, 404, "unknown_url"),
        ("PUT", CHAT_PATH, None, 405, "method_not_allowed"),
    ],
)
def test_a_refused_request_is_recorded(
    node: Node, method: str, path: str, body: object, status: int, code: str
) -> None:
    answer = node.request(method, path, body)
    assert answer.status == status
    reject = node.reject(answer.request_id)
    assert (reject.status, reject.code, reject.key_id) == (status, code, node.key.id)
    assert reject.route in {CHAT_PATH, "unknown"}


def test_a_refused_key_is_recorded_without_the_key(node: Node) -> None:
    headers = {"Authorization": "Bearer sk-aaaaaaaa-" + "b" * 40}
    answer = node.request("GET", "/v1/models", headers=headers)
    reject = node.reject(answer.request_id)
    assert (reject.status, reject.code, reject.key_id) == (401, "invalid_api_key", "")


def test_what_anybody_may_ask_leaves_no_record(node: Node) -> None:
    for method, path in (("GET", "/health"), ("GET", "/metrics"), ("POST", "/health")):
        node.request(method, path)
    node.request("GET", "/v1/models")
    assert not [e for e in node.events() if not isinstance(e, Admin)]


def test_the_usage_database_is_a_projection_of_the_log(node: Node) -> None:
    for n in (1, 2):
        node.request("POST", CHAT_PATH, ask(n=n))
    last = node.request("POST", "/v1/embeddings", {"model": EMBEDDING, "input": "abc"})
    node.row(last.request_id)
    meter = Meter(node.config.layout.usage_db)
    served = list(meter.rows())
    assert len(served) == 3
    rebuild(meter, node.config.layout.audit)
    assert list(meter.rows()) == served
    meter.close()


def test_no_content_and_no_key_is_kept_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary7391"
    with standing(tmp_path) as node:
        node.request("POST", CHAT_PATH, ask(canary))
        node.stream(ask(canary, stream=True)).documents()
        node.request("POST", "/v1/embeddings", {"model": EMBEDDING, "input": canary})
        node.request("POST", CHAT_PATH, {**ask(canary), "temperature": canary})
        node.request("POST", CHAT_PATH, f'{{"{canary}": 1, '.encode())
        node.request("GET", f"/v1/{canary}?{canary}")
        last = node.request("POST", CHAT_PATH, {**ask(), "messages": [{"role": canary}]})
        node.engine.behaviour.fault = Fault(grpc.StatusCode.INTERNAL, canary, after_tokens=1)
        node.request("POST", CHAT_PATH, ask(canary))
        node.reject(last.request_id)
        node.metric("appliance_engine_up")
        assert canary.encode() not in node.request("GET", "/metrics").body
    secret = node.secret.rpartition("-")[2]
    files = node.kept()
    assert len(files) > 4
    for path, content in files.items():
        assert canary.encode() not in content, path
        assert secret.encode() not in content, path
    assert canary not in caplog.text


def _body(document: object) -> bytes:
    return json.dumps(document).encode()
