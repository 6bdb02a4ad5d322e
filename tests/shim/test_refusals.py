"""Whatever is wrong with a request, the answer is an error in the API's shape that names it."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from appliance.engine_daemon.faults import status
from appliance.errors import ApplianceError, RequestError
from appliance.prompting.child import machine_busy
from appliance.shim import http_protocol
from appliance.shim.refusals import STATUS_OF_CODE, refusal
from tests.conftest import REPOSITORY
from tests.fakes.engine import CHAT, EMBEDDING, FakeEngine, Fault
from tests.shim.node import PATIENCE, Answer, Node, ask, eventually, prepare, running_shim, standing

CHAT_PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for the whole file: nothing here changes it."""
    with standing(tmp_path_factory.mktemp("node")) as made:
        yield made


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("GET", "/v2/models", 404, "unknown_url"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("POST", "/v1/chat/completions/", 404, "unknown_url"),
        ("POST", "/v1//chat/completions", 404, "unknown_url"),
        ("GET", CHAT_PATH, 405, "method_not_allowed"),
        ("DELETE", "/v1/models/echo", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/models/nobody/knows", 404, "model_not_found"),
    ],
)
def test_unknown_routes_and_methods(
    node: Node, method: str, path: str, status: int, code: str
) -> None:
    answer = node.request(method, path)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.error["type"] == "invalid_request_error"
    assert answer.request_id.startswith("req_")


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions"])
def test_a_base_url_without_its_v1_or_with_two_is_told_so(node: Node, path: str) -> None:
    message = node.request("POST", path, ask()).error["message"]
    assert f"there is {CHAT_PATH}: let the base URL end with /v1, once" in message
    assert "GET /docs" in node.request("POST", "/v1/audio/speech", ask()).error["message"]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic c2s6eA==",
        "Bearer sk-unknown",
        "Bearer sk-aaaaaaaa-" + "a" * 40,
        "Bearer \u00e9\u00e9",
    ],
)
def test_every_way_not_to_have_a_key(node: Node, header: str | None) -> None:
    connection = node.connect()
    headers = {} if header is None else {"Authorization": header}
    connection.request("GET", "/v1/models", headers=headers)
    response = connection.getresponse()
    answer = Answer(response.status, dict(response.getheaders()), response.read())
    connection.close()
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_two_authorization_headers_are_none(node: Node) -> None:
    connection = node.connect()
    connection.putrequest("GET", "/v1/models")
    connection.putheader("Authorization", f"Bearer {node.secret}")
    connection.putheader("Authorization", "Bearer sk-other")
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8400", "127.0.0.1.evil.example", "x/health?", "", "[::1", "a b"],
)
@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_a_request_for_another_host_is_refused(node: Node, host: str, path: str) -> None:
    connection = node.connect()
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    assert connection.getresponse().status == 421
    connection.close()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8400", "127.0.0.9", "[::1]:8400"])
def test_this_machine_has_many_names(node: Node, host: str) -> None:
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert node.request("POST", CHAT_PATH, ask(), headers=headers).status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil", ""])
def test_a_page_of_another_site_is_refused(node: Node, origin: str) -> None:
    answer = node.request("POST", CHAT_PATH, ask(), headers={"Origin": origin})
    assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")


def test_the_operator_adds_hosts(tmp_path: Path) -> None:
    config = prepare(tmp_path, hosts="Models.intern box")
    with FakeEngine(config.layout.engine_socket) as engine, running_shim(config):
        node = Node(config, engine)
        headers = {"Host": "models.intern:443", "Origin": "https://box"}
        assert node.request("POST", CHAT_PATH, ask(), headers=headers).status == 200
        answer = node.request("GET", "/health", headers={"Host": "other.intern"})
        assert answer.error["code"] == "host_not_allowed"


def test_connections_beyond_the_cap_are_refused_and_room_returns(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "CONNECTIONS", 3)
    address = ("127.0.0.1", node.config.api.listen_port)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(address))
        one_more = stack.enter_context(socket.create_connection(address, timeout=PATIENCE))
        answer = one_more.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"too_many_connections" in answer
    eventually(lambda: _healthy(node))


def _healthy(node: Node) -> bool | None:
    try:
        return node.request("GET", "/health").status == 200 or None
    except OSError:
        return None


def test_a_caller_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "TAKE_SECONDS", 0.2)
    asyncio.run(_serve_endlessly())


async def _serve_endlessly() -> None:
    """Answer without end to somebody who asks and does not read; ends when they are cut off."""
    ended = asyncio.Event()

    async def endless(_scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
            await asyncio.sleep(0)
        ended.set()

    config = uvicorn.Config(endless, log_config=None, lifespan="off")
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: http_protocol.BoundedHttpProtocol(config, state, {}), "127.0.0.1", 0
    )
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(60):
            await ended.wait()
    server.close()
    await server.wait_closed()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"hello", "invalid_json"),
        (json.dumps(ask()).encode() + b" x", "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b'{"model": "\\ud800"}', "invalid_json"),
        (b'{"temperature": NaN}', "invalid_json"),
        (b'{"metadata": ' + b"[" * 100_000, "invalid_value"),
        (
            b'{"model":"echo","messages":[{"role":"user","content":"x"}],"response_format":'
            b'{"type":"json_schema","json_schema":{"name":"a","schema":{"a":'
            + b"[" * 100_000
            + b"]" * 100_000
            + b"}}}}",
            "invalid_json",
        ),
        (b"[]", "invalid_value"),
        (b"null", "invalid_value"),
    ],
)
def test_bodies_that_are_no_request(node: Node, body: bytes, code: str) -> None:
    answer = node.request("POST", CHAT_PATH, body)
    assert (answer.status, answer.error["code"]) == (400, code)


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_bodies_of_another_media_type(node: Node, media_type: str) -> None:
    answer = node.request("POST", CHAT_PATH, ask(), headers={"Content-Type": media_type})
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")


def test_a_compressed_body_is_refused_as_such(node: Node) -> None:
    answer = node.request("POST", CHAT_PATH, ask(), headers={"Content-Encoding": "gzip"})
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")
    assert "compressed" in answer.error["message"]
    assert (
        node.request("POST", CHAT_PATH, ask(), headers={"Content-Encoding": "identity"}).status
        == 200
    )


def test_an_earlier_answer_may_come_back_with_no_annotations(node: Node) -> None:
    earlier: dict[str, object] = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
    }
    again = {"role": "user", "content": "again"}
    assert node.request("POST", CHAT_PATH, ask(messages=[earlier, again])).status == 200
    cited = {**earlier, "annotations": [{"type": "url_citation"}]}
    answer = node.request("POST", CHAT_PATH, ask(messages=[cited, again]))
    assert (answer.status, answer.error["param"]) == (400, "messages[0].annotations")


def test_a_media_type_may_have_parameters(node: Node) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert node.request("POST", CHAT_PATH, ask(), headers=headers).status == 200


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"model": None}, "model", "invalid_value"),
        ({"model": 3}, "model", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_value"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_parameter"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_parameter"),
        ({"messages": [{"role": "x", "content": ""}]}, "messages[0].role", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": "", "mood": "x"}]},
            "messages[0].mood",
            "unknown_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 1}]}]},
            "messages[0].content[0].image_url",
            "invalid_value",
        ),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        ({"seed": 1 << 63}, "seed", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"top_logprobs": 1}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "unsupported_parameter",
        ),
        (
            {"stream": True, "stream_options": {"more": True}},
            "stream_options.more",
            "unknown_parameter",
        ),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "any"}, "tool_choice", "invalid_value"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice.function.name",
            "invalid_value",
        ),
        ({"tool_choice": {"type": "custom"}}, "tool_choice.type", "invalid_value"),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "f"}}],
                    },
                }
            },
            "tool_choice.allowed_tools.tools[0].function.name",
            "invalid_value",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
            "invalid_value",
        ),
        (
            {"chat_template_kwargs": {"x": 1}},
            "chat_template_kwargs.x",
            "unknown_parameter",
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"},
            "chat_template_kwargs.enable_thinking",
            "invalid_value",
        ),
        ({"continue_final_message": True}, "continue_final_message", "invalid_value"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "invalid_value"),
        ({"frobnicate": 1}, "frobnicate", "unknown_parameter"),
    ],
)
def test_a_wrong_chat_parameter_is_named(
    node: Node, change: dict[str, Any], param: str, code: str
) -> None:
    reached = len(node.engine.requests)
    answer = node.request("POST", CHAT_PATH, {**ask(), **change})
    assert answer.status == 400, answer.body
    assert (answer.error["param"], answer.error["code"]) == (param, code)
    assert len(node.engine.requests) == reached


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": CHAT}, "prompt"),
        ("/v1/completions", {"model": CHAT, "prompt": []}, "prompt"),
        ("/v1/completions", {"model": CHAT, "prompt": [[]]}, "prompt"),
        ("/v1/completions", {"model": CHAT, "prompt": ["a", 1]}, "prompt"),
        ("/v1/completions", {"model": CHAT, "prompt": ["a"] * 129}, "prompt"),
        ("/v1/completions", {"model": CHAT, "prompt": "a", "best_of": 2}, "best_of"),
        ("/v1/completions", {"model": CHAT, "prompt": [65, 66], "suffix": "b"}, "suffix"),
        ("/v1/embeddings", {"model": EMBEDDING}, "input"),
        ("/v1/embeddings", {"model": EMBEDDING, "input": []}, "input"),
        ("/v1/embeddings", {"model": EMBEDDING, "input": [[]]}, "input"),
        ("/v1/embeddings", {"model": EMBEDDING, "input": [-1]}, "input[0]"),
        ("/v1/embeddings", {"model": EMBEDDING, "input": ["a"] * 2049}, "input"),
        (
            "/v1/embeddings",
            {"model": EMBEDDING, "input": "a", "encoding_format": "hex"},
            "encoding_format",
        ),
    ],
)
def test_a_wrong_parameter_of_the_other_apis_is_named(
    node: Node, path: str, body: dict[str, Any], param: str
) -> None:
    answer = node.request("POST", path, body)
    assert answer.status == 400, answer.body
    assert answer.error["param"] == param


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (json.dumps(ask("first"))[:-1] + ', "messages": []}', "messages"),
        (json.dumps(ask()).replace('"role"', '"role": "user", "role"'), "role"),
        (json.dumps(ask()).replace('"role"', '"role": "user", "r\\u006fle"'), "role"),
    ],
)
def test_a_name_that_stands_twice_is_refused(node: Node, body: str, name: str) -> None:
    answer = node.request("POST", CHAT_PATH, body.encode())
    assert answer.status == 400
    assert answer.error["param"] == name


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "echo", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "echo", "seed": ' + b"9" * 100_000 + b', "messages": []}',
        b'{"model": "echo", "temperature": 1e' + b"9" * 1000 + b', "messages": []}',
        b'{"model": "echo", "temperature": NaN, "messages": []}',
    ],
)
def test_deep_and_endless_values_are_refused(node: Node, body: bytes) -> None:
    assert node.request("POST", CHAT_PATH, body).status == 400
    assert node.request("POST", CHAT_PATH, ask()).status == 200


@pytest.fixture
def small(tmp_path: Path) -> Any:
    config = prepare(tmp_path, max_body_bytes=2048)
    with FakeEngine(config.layout.engine_socket) as engine, running_shim(config):
        yield Node(config, engine)


def test_an_announced_oversize_body_is_refused_before_it_is_sent(small: Node) -> None:
    connection = small.connect()
    connection.putrequest("POST", CHAT_PATH)
    connection.putheader("Authorization", f"Bearer {small.secret}")
    connection.putheader("Content-Length", "3000000000")
    connection.endheaders()
    response = connection.getresponse()
    answer = Answer(response.status, dict(response.getheaders()), response.read())
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"
    connection.close()


def test_an_oversize_body_in_chunks_is_refused_while_it_comes(small: Node) -> None:
    connection = small.connect()
    headers = {"Authorization": f"Bearer {small.secret}", "Content-Type": "application/json"}
    body = (b"x" * 1024 for _ in range(4))
    connection.request("POST", CHAT_PATH, body, headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_of_the_limit_is_taken(small: Node) -> None:
    body = json.dumps(ask("x")).encode()
    padded = body + b" " * (2048 - len(body))
    assert small.request("POST", CHAT_PATH, padded).status == 200


def test_a_connection_serves_on_after_a_refusal(node: Node) -> None:
    connection = node.connect()
    first = node.request("POST", CHAT_PATH, b"{", connection=connection)
    second = node.request("POST", CHAT_PATH, ask(), connection=connection)
    assert (first.status, second.status) == (400, 200)
    connection.close()


def test_a_body_that_does_not_arrive_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.shim.app._BODY_SECONDS", 0.2)
    config = prepare(tmp_path)
    with FakeEngine(config.layout.engine_socket) as engine, running_shim(config):
        node = Node(config, engine)
        connection = node.connect()
        connection.putrequest("POST", CHAT_PATH)
        connection.putheader("Authorization", f"Bearer {node.secret}")
        connection.putheader("Content-Length", "100")
        connection.endheaders()
        connection.send(b"{")
        assert connection.getresponse().status == 408
        connection.close()


def raw(node: Node, data: bytes) -> bytes:
    """What the server says to `data` until it closes the connection, maybe before its end."""
    address, answer = ("127.0.0.1", node.config.api.listen_port), b""
    with socket.create_connection(address, timeout=PATIENCE) as client:
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(data)
        with suppress(ConnectionResetError):
            while part := client.recv(65536):
                answer += part
    return answer


def test_what_is_not_http_is_answered_in_the_same_shape(node: Node) -> None:
    answer = raw(node, b"EHLO example\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_a_head_without_end_is_cut_off(node: Node) -> None:
    size = http_protocol.HEAD_BYTES // 1000 + 2
    answer = raw(node, b"GET / HTTP/1.1\r\n" + b"".join(b"X: %999d\r\n" % i for i in range(size)))
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_head_that_comes_whole_has_the_same_bound(node: Node) -> None:
    body = json.dumps(ask()).encode()
    long = b"X: " + b"1" * http_protocol.HEAD_BYTES + b"\r\n"
    answer = raw(node, _post(node, len(body), long) + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"invalid_http" in answer


UPGRADE = (
    b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
)
"""What Java's own client asks for on a connection in clear."""


@pytest.mark.parametrize("pieces", [1, 2, 5])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_protocol_that_is_not_spoken_costs_nobody_the_answer(
    node: Node, pieces: int, *, chunked: bool
) -> None:
    body = json.dumps(ask()).encode()
    if chunked:
        sent = _post(node, None, UPGRADE) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        sent = _post(node, len(body), UPGRADE) + body
    with socket.create_connection(("127.0.0.1", node.config.api.listen_port)) as client:
        client.settimeout(PATIENCE)
        for _ in range(2):  # and the connection goes on
            size = -(-len(sent) // pieces)
            for start in range(0, len(sent), size):
                client.sendall(sent[start : start + size])
                time.sleep(0.01 * (pieces > 1))
            response = http.client.HTTPResponse(client)
            response.begin()
            assert response.status == 200
            assert json.loads(response.read())["choices"]


def test_a_tunnel_is_refused(node: Node) -> None:
    assert b" 400 " in raw(
        node, b"CONNECT a:1 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    )


def _post(node: Node, length: int | None, further: bytes) -> bytes:
    """The head of a chat request with a body of so many bytes, or in chunks."""
    size = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    return (
        b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n"
        b"Content-Type: application/json\r\n%s%s\r\n\r\n"
        % (CHAT_PATH.encode(), node.secret.encode(), further, size)
    )


def test_a_head_that_comes_too_slowly_is_cut_off(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.2)
    assert raw(node, b"GET / HTTP/1.1\r\nX: ") == b""


def test_an_idle_connection_between_requests_is_kept(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = node.connect()
    assert node.request("GET", "/health", connection=connection).status == 200
    # Only now: a new connection has so long for its first head.
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.1)
    assert node.request("GET", "/health", connection=connection).status == 200
    time.sleep(0.4)
    assert node.request("GET", "/health", connection=connection).status == 200
    connection.close()


def test_an_internal_error_says_nothing_of_itself(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = "what the caller wrote"

    def fail(*_: object) -> None:
        raise ValueError(content)

    monkeypatch.setattr("appliance.shim.api.chat.ChatShape.whole", fail)
    answer = node.request("POST", CHAT_PATH, ask())
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert content not in answer.error["message"] + caplog.text
    assert answer.request_id in caplog.text
    assert "ValueError" in caplog.text


def test_the_hint_is_part_of_the_message() -> None:
    error = RequestError("it is wrong", param="x", hint="make it right")
    assert refusal(error).document.error.message == "it is wrong; make it right"
    assert refusal(ApplianceError("odd")).status == 500


def test_the_documented_errors_are_those_there_are() -> None:
    page = (REPOSITORY / "docs/api.md").read_text()
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", page, re.MULTILINE)
    documented = {code: int(status) for status, code in rows}
    assert documented.items() >= STATUS_OF_CODE.items()
    sources = "".join(path.read_text() for path in (REPOSITORY / "appliance").rglob("*.py"))
    for code in documented:
        assert f'"{code}"' in sources, f"nothing raises {code}"


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/messages"])
def test_a_machine_that_was_too_busy_asks_to_be_asked_again(node: Node, path: str) -> None:
    busy = machine_busy()
    node.engine.behaviour.fault = Fault(status(busy), busy.message, busy.code, busy.hint)
    try:
        body = {"model": CHAT, "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}
        answer = node.request("POST", path, body)
    finally:
        node.engine.behaviour.fault = None
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    error = answer.json["error"]
    said = ("server_error", error.get("code"))
    if path == "/v1/messages":
        said = ("api_error", error["details"]["error_code"])
    assert said == (error["type"], "machine_busy")
