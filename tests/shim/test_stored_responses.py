"""Stored responses: off unless switched on, of one key, for a time, gone when deleted."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest

from appliance.access import KeyStore, new_key
from appliance.config import ApiSettings
from appliance.pb import engine_v1_pb2 as pb
from tests.fakes.engine import CHAT, FakeEngine, Fault
from tests.shim.node import Node, eventually, prepare, running_shim, standing

PATH = "/v1/responses"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node whose operator lets callers store responses."""
    with standing(tmp_path, store_responses=True) as made:
        yield made


def texts(request: object) -> list[str]:
    assert isinstance(request, pb.GenerateRequest)
    return ["".join(part.text for part in m.content) for m in request.chat.messages]


def create(node: Node, text: object = "hello", **more: Any) -> Any:
    answer = node.request("POST", PATH, {"model": CHAT, "input": text, **more})
    assert answer.status == 200, answer.body
    return answer.json


def ended(node: Node, response_id: str) -> Any:
    def find() -> Any:
        response = node.request("GET", f"{PATH}/{response_id}").json
        return response if response["status"] != "in_progress" else None

    return eventually(find)


def test_a_response_is_read_again_as_it_was(client: openai.OpenAI) -> None:
    made = client.responses.create(model=CHAT, input="hello")
    assert made.store  # type: ignore[attr-defined]
    assert client.responses.retrieve(made.id) == made


def test_an_item_may_be_named_by_its_id(node: Node) -> None:
    said = create(node, "a", reasoning={"effort": "low"})["output"]
    asked = [*({"type": "item_reference", "id": item["id"]} for item in said), user("b")]
    second = create(node, asked)
    request = node.engine.requests[-1]
    assert texts(request) == ["a", "b"]
    assert isinstance(request, pb.GenerateRequest)
    assert request.chat.messages[0].reasoning == "hm"
    shown = node.request("GET", f"{PATH}/{second['id']}/input_items").json["data"]
    assert [item["type"] for item in shown] == ["message", "message", "reasoning"]


def test_an_item_of_another_key_or_of_nobody_is_not_there(node: Node) -> None:
    said = create(node, "a")["output"][0]["id"]
    with KeyStore(node.config.layout.keys_db) as keys:
        _, other = keys.create("other")
    for secret, name in ((other, said), (node.secret, f"{said}9"), (node.secret, "a")):
        body = {"model": CHAT, "input": [{"type": "item_reference", "id": name}]}
        answer = node.request("POST", PATH, body, headers={"Authorization": f"Bearer {secret}"})
        assert (answer.status, answer.error["param"]) == (400, "input[0].id")


def test_an_item_cannot_be_named_where_nothing_is_stored(tmp_path: Path) -> None:
    with standing(tmp_path / "other") as bare:
        body = {"model": CHAT, "input": [{"type": "item_reference", "id": "rs_1_0"}]}
        error = bare.request("POST", PATH, body).error
    assert (error["param"], error["code"]) == ("input[0].type", "unsupported_parameter")
    assert "store: false" in error["message"]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_streamed_response_is_stored_before_its_last_event(client: openai.OpenAI) -> None:
    last = list(client.responses.create(model=CHAT, input="hello", stream=True))[-1]
    assert last.type == "response.completed"
    assert client.responses.retrieve(last.response.id) == last.response


def test_what_a_response_was_made_with_may_be_asked_for_and_an_earlier_stream_may_not(
    client: openai.OpenAI,
) -> None:
    made = client.responses.create(model=CHAT, input="hello")
    logprobs: Any = ["message.output_text.logprobs"]
    assert client.responses.retrieve(made.id, include=logprobs, stream=False) == made
    assert client.responses.input_items.list(made.id, include=logprobs).data
    for param, again in (
        ("stream", lambda: client.responses.retrieve(made.id, stream=True)),
        ("starting_after", lambda: client.responses.retrieve(made.id, starting_after=1)),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            again()
        assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")
        assert "ask until it has ended" in refused.value.message


def test_a_declined_response_is_nowhere(node: Node) -> None:
    made = create(node, store=False)
    answer = node.request("GET", f"{PATH}/{made['id']}")
    assert (answer.status, answer.error["code"]) == (404, "response_not_found")


def test_a_turn_builds_on_all_turns_before_it(client: openai.OpenAI, node: Node) -> None:
    first = client.responses.create(model=CHAT, input="one", instructions="not carried over")
    second = client.responses.create(model=CHAT, input="two", previous_response_id=first.id)
    third = client.responses.create(model=CHAT, input="three", previous_response_id=second.id)
    assert texts(node.engine.requests[-1]) == ["one", "one", "two", "two", "three"]
    assert third.previous_response_id == second.id
    items = list(client.responses.input_items.list(third.id, order="asc", limit=2))
    assert [item.type for item in items] == ["message"] * 5
    newest = client.responses.input_items.list(third.id, limit=1)
    assert newest.data[0].model_dump()["content"][0]["text"] == "three"
    assert newest.has_more


def test_another_key_s_response_does_not_exist(node: Node) -> None:
    made = create(node)
    with KeyStore(node.config.layout.keys_db) as keys:
        _, other = keys.create("other")
    headers = {"Authorization": f"Bearer {other}"}
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/input_items"),
    ):
        answer = node.request(method, f"{PATH}/{made['id']}{path}", headers=headers)
        assert (answer.status, answer.error["code"]) == (404, "response_not_found")
    body = {"model": CHAT, "input": "a", "previous_response_id": made["id"]}
    assert node.request("POST", PATH, body, headers=headers).status == 404
    assert node.request("GET", f"{PATH}/{made['id']}").status == 200


def test_a_rotated_key_s_successor_has_its_responses_and_nobody_else_of_the_project(
    node: Node,
) -> None:
    made = create(node)
    with KeyStore(node.config.layout.keys_db) as keys:
        successor = new_key("next", lineage=node.key.lineage or node.key.id)
        keys.add(successor)
        neighbour = new_key("neighbour", project=node.key.project)
        keys.add(neighbour)
    path = f"{PATH}/{made['id']}"
    for secret, status in ((successor.secret, 200), (neighbour.secret, 404), (node.secret, 200)):
        headers = {"Authorization": f"Bearer {secret}"}
        assert node.request("GET", path, headers=headers).status == status
        body = {"model": CHAT, "input": "a", "previous_response_id": made["id"]}
        assert node.request("POST", PATH, body, headers=headers).status == status


def test_what_an_older_release_stored_for_a_key_belongs_to_its_lineage(tmp_path: Path) -> None:
    config = prepare(tmp_path, store_responses=True)
    with FakeEngine(config.layout.engine_socket) as engine:
        with running_shim(config):
            node = Node(config, engine)
            successor = new_key("next", lineage=node.key.id)
            with KeyStore(config.layout.keys_db) as keys:
                keys.add(successor)
            made = create(node)
        with sqlite3.connect(config.layout.responses_db) as database:
            database.execute("ALTER TABLE responses RENAME COLUMN owner TO key_id")
            database.execute("UPDATE responses SET key_id = ?", (successor.info.id,))
            database.execute("PRAGMA user_version = 1")
        database.close()
        with running_shim(config):
            assert ended(node, made["id"])["status"] == "completed"


def test_a_deleted_response_is_gone_from_the_file_too(client: openai.OpenAI, node: Node) -> None:
    made = client.responses.create(model=CHAT, input="a most private question")
    path = node.config.layout.responses_db
    assert b"most private" in path.read_bytes()
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    assert b"most private" not in path.read_bytes()


def test_what_was_built_on_a_deleted_response_says_that_it_is_the_earlier_one_that_is_gone(
    client: openai.OpenAI,
) -> None:
    first = client.responses.create(model=CHAT, input="one")
    second = client.responses.create(model=CHAT, input="two", previous_response_id=first.id)
    client.responses.delete(first.id)
    assert client.responses.retrieve(second.id).id == second.id
    for call in (
        lambda: client.responses.input_items.list(second.id),
        lambda: client.responses.create(model=CHAT, input="x", previous_response_id=second.id),
    ):
        with pytest.raises(openai.NotFoundError, match="an earlier response") as refused:
            call()
        assert refused.value.code == "response_not_found"


def test_nobody_else_on_the_machine_may_read_the_file(node: Node) -> None:
    create(node)
    assert node.config.layout.responses_db.stat().st_mode & 0o777 == 0o600


def test_a_response_expires_unless_it_is_built_upon(node: Node) -> None:
    first, lonely = create(node), create(node)
    path = node.config.layout.responses_db

    def age(seconds: int, *response_ids: str) -> None:
        with sqlite3.connect(path) as database:
            for response_id in response_ids:
                database.execute(
                    "UPDATE responses SET expires = unixepoch() + ? WHERE id = ?",
                    (seconds, response_id),
                )
        database.close()

    age(60, first["id"], lonely["id"])
    second = create(node, previous_response_id=first["id"])
    with sqlite3.connect(path) as database:
        rows = dict(database.execute("SELECT id, expires FROM responses"))
    database.close()
    assert rows[first["id"]] == rows[second["id"]] > rows[lonely["id"]]
    age(-1, lonely["id"])
    assert node.request("GET", f"{PATH}/{lonely['id']}").status == 404
    create(node)
    with sqlite3.connect(path) as database:
        kept = {row[0] for row in database.execute("SELECT id FROM responses")}
    database.close()
    assert lonely["id"] not in kept


def test_a_background_response_is_computed_after_its_answer(
    client: openai.OpenAI, node: Node
) -> None:
    node.engine.behaviour.pause_after = 2
    made = client.responses.create(model=CHAT, input="hello", background=True)
    assert (made.status, made.output) == ("in_progress", [])
    node.engine.behaviour.release.set()
    response = ended(node, made.id)
    assert response["status"] == "completed"
    assert response["output"][0]["content"][0]["text"] == "hello"
    assert response["usage"]["output_tokens"] == len("hello") + 1
    assert node.res(made.id.replace("resp_", "req_")).outcome == "ok"


def test_a_background_response_that_the_engine_refuses_is_refused_at_once(node: Node) -> None:
    body = {"model": "nobody", "input": "a", "background": True}
    answer = node.request("POST", PATH, body)
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert node.reject(answer.request_id).code == "model_not_found"


def test_a_cancelled_background_response_stops_and_is_billed_exactly(
    client: openai.OpenAI, node: Node
) -> None:
    node.engine.behaviour.pause_after = 2
    made = client.responses.create(model=CHAT, input="hello", background=True)
    eventually(lambda: node.engine.last_call().sequences[0].generated_tokens == 2)
    response = client.responses.cancel(made.id)
    assert response.status == "cancelled"
    assert response.usage is not None
    assert response.usage.output_tokens == 2
    node.engine.wait_until_idle()
    res = node.res(made.id.replace("resp_", "req_"))
    assert (res.outcome, res.tokens.generated) == ("cancelled", 2)
    assert client.responses.cancel(made.id).status == "cancelled"


def test_a_deleted_background_response_stops_too(client: openai.OpenAI, node: Node) -> None:
    node.engine.behaviour.pause_after = 2
    made = client.responses.create(model=CHAT, input="hello", background=True)
    client.responses.delete(made.id)
    node.engine.wait_until_idle()
    assert node.request("GET", f"{PATH}/{made.id}").status == 404


def test_a_background_response_that_fails_says_why(client: openai.OpenAI, node: Node) -> None:
    node.engine.behaviour.fault = Fault(grpc.StatusCode.INTERNAL, after_tokens=2)
    made = client.responses.create(model=CHAT, input="hello", background=True)
    response = ended(node, made.id)
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert response["usage"]["output_tokens"] == 2
    assert node.res(made.id.replace("resp_", "req_")).outcome == "error"


def test_only_the_background_can_be_cancelled_and_only_ends_be_built_upon(node: Node) -> None:
    made = create(node)
    answer = node.request("POST", f"{PATH}/{made['id']}/cancel")
    assert (answer.status, answer.error["param"]) == (400, "response_id")
    node.engine.behaviour.pause_after = 2
    running = create(node, background=True)
    body = {"model": CHAT, "input": "a", "previous_response_id": running["id"]}
    answer = node.request("POST", PATH, body)
    assert (answer.status, answer.error["param"]) == (400, "previous_response_id")
    node.engine.behaviour.release.set()
    ended(node, running["id"])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"background": True, "store": False}, "background"),
        ({"background": True, "stream": True}, "stream"),
    ],
)
def test_background_needs_a_place_and_no_stream(
    node: Node, body: dict[str, Any], param: str
) -> None:
    answer = node.request("POST", PATH, {"model": CHAT, "input": "a", **body})
    assert (answer.status, answer.error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("?stream=true", "stream"),
        ("?starting_after=1", "starting_after"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?order=up", "order"),
        ("/input_items?include=x", "include"),
        ("/input_items?after=nothing", "after"),
        ("/input_items?%FF", None),
    ],
)
def test_the_query_is_checked_too(node: Node, path: str, param: str | None) -> None:
    made = create(node)
    answer = node.request("GET", f"{PATH}/{made['id']}{path}")
    assert answer.status == 400
    assert param is None or answer.error["param"] == param


def test_an_answer_that_cannot_be_stored_is_not_given_and_billed_all_the_same(
    node: Node,
) -> None:
    with sqlite3.connect(node.config.layout.responses_db) as database:
        database.execute("DROP TABLE responses")
    database.close()
    body = {"model": CHAT, "input": "hello"}
    answer = node.request("POST", PATH, body)
    assert (answer.status, answer.error["code"]) == (503, "storage")
    assert node.res(answer.request_id).tokens.generated == len("hello") + 1
    events = node.stream({**body, "stream": True}, PATH).documents()
    assert events[-1]["type"] == "response.failed"
    background = node.request("POST", PATH, {**body, "background": True})
    assert (background.status, background.error["code"]) == (503, "storage")
    node.engine.wait_until_idle()
    assert node.request("POST", PATH, {**body, "store": False}).status == 200


def test_reading_a_stored_response_is_on_record(node: Node) -> None:
    made = create(node)
    answer = node.request("GET", f"{PATH}/{made['id']}")
    assert node.req(answer.request_id).route == "/v1/responses/{response_id}"
    assert node.res(answer.request_id).tokens.generated == 0


def test_a_stop_waits_for_the_background(tmp_path: Path) -> None:
    config = prepare(tmp_path, store_responses=True)
    with FakeEngine(config.layout.engine_socket) as engine:
        with running_shim(config) as shim:
            node = Node(config, engine)
            engine.behaviour.pause_after = 2
            made = create(node, background=True)
            shim.stop()
            threading.Timer(0.2, engine.behaviour.release.set).start()
        with running_shim(config):
            assert ended(node, made["id"])["status"] == "completed"


def test_what_a_kill_cut_off_has_failed_after_the_next_start(tmp_path: Path) -> None:
    config = prepare(tmp_path, store_responses=True)
    with FakeEngine(config.layout.engine_socket) as engine:
        with running_shim(config):
            node = Node(config, engine)
            made = create(node)
        with sqlite3.connect(config.layout.responses_db) as database:
            database.execute("UPDATE responses SET running = 1")
        database.close()
        with running_shim(config):
            response = ended(node, made["id"])
            assert (response["status"], response["error"]["code"]) == ("failed", "server_error")


def test_switched_off_nothing_of_it_is_left(tmp_path: Path) -> None:
    config = prepare(tmp_path, store_responses=True)
    with FakeEngine(config.layout.engine_socket) as engine:
        with running_shim(config):
            node = Node(config, engine)
            made = create(node)
        off = replace(config, api=ApiSettings(listen_port=config.api.listen_port))
        with running_shim(off):
            assert not config.layout.responses_db.exists()
            answer = node.request("GET", f"{PATH}/{made['id']}")
            assert (answer.status, answer.error["code"]) == (404, "response_not_found")
