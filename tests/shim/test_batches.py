"""Batches: run as applications would ask, at the batch price, once, and to an end of any kind."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import msgspec
import openai
import pytest

from appliance.access import KeyStore, new_key
from appliance.audit.event import Reject, Response
from appliance.metering import PriceTable, Tariff
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.batches.batch_store import MAX_RUNNING
from appliance.shim.batches.file_store import SPARE_BYTES
from appliance.shim.batches.gate import PRIORITY
from tests.fakes.engine import CHAT, EMBEDDING, RERANK, FakeEngine, Fault
from tests.node.machine import mounted
from tests.shim.batch_input import (
    CHAT_PATH,
    begin,
    content,
    ended,
    form,
    jsonl,
    line,
    look,
    said,
    upload,
)
from tests.shim.node import Node, ask, eventually, prepare, running_shim, standing

NAMES = [f"line-{n}" for n in range(12)]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node whose operator lets callers keep files, and responses."""
    with standing(tmp_path, store_files=True, store_responses=True) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for tests that only add to it."""
    root = tmp_path_factory.mktemp("node")
    with standing(root, store_files=True, store_responses=True, max_body_bytes=60_000) as made:
        yield made


def lines(*names: str) -> list[dict[str, Any]]:
    return [line(name) for name in names or NAMES]


def results(node: Node) -> list[Response]:
    """What was recorded of lines."""
    return [e for e in node.events() if isinstance(e, Response) and e.batch]


def running(node: Node, count: int) -> None:
    """Wait until the engine works on `count` calls."""
    eventually(lambda: node.engine.running == count)


def test_the_strict_sdk_runs_a_batch(client: openai.OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", jsonl(lines())), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"job": "nightly"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (made.status, made.metadata) == ("validating", {"job": "nightly"})
    assert made.expires_at == made.created_at + 24 * 3600

    def find() -> Any:
        batch = client.batches.retrieve(made.id)
        return batch if batch.status == "completed" else None

    batch = eventually(find)
    counts, usage = batch.request_counts, batch.usage
    assert (counts.total, counts.completed, counts.failed) == (12, 12, 0)
    assert usage.output_tokens == sum(len(name) + 1 for name in NAMES)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert batch.model == CHAT
    assert batch.error_file_id is None
    assert made.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    output = client.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output"
    assert output.expires_at == output.created_at + 3600
    text = client.files.content(batch.output_file_id).content
    assert len(text) == output.bytes
    said = {}
    for item in map(msgspec.json.decode, text.splitlines()):
        assert item["error"] is None
        assert item["response"]["status_code"] == 200
        answer = openai.types.chat.ChatCompletion.model_validate(item["response"]["body"])
        said[item["custom_id"]] = answer.choices[0].message.content
    assert said == {name: name for name in NAMES}
    assert [b.id for b in client.batches.list()] == [made.id]


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[tuple[Node, Path]]:
    """A node whose files lie on a disk with room for little more than what stays free."""
    config = prepare(tmp_path, store_files=True)
    small = config.layout.files_db.parent
    small.mkdir(parents=True, exist_ok=True)
    size = f"size={SPARE_BYTES + (8 << 20)}"
    with (
        mounted(["-t", "tmpfs", "-o", size, "tmpfs", str(small)], small),
        FakeEngine(config.layout.engine_socket) as engine,
        running_shim(config),
    ):
        yield Node(config, engine), small


def fill(place: Path, free: int) -> None:
    """Let others use the disk at `place` until so many bytes are free."""
    with (place / "others").open("wb") as others:
        os.posix_fallocate(others.fileno(), 0, shutil.disk_usage(place).free - free)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_batch_ends_where_the_disk_is_kept_for_the_log_and_what_was_done_stays(
    cramped: tuple[Node, Path],
) -> None:
    node, place = cramped
    node.engine.behaviour.pause_after = 3
    batch_id = begin(node, lines(*(f"line-{n:03}" for n in range(200))))["id"]
    eventually(lambda: node.engine.running > 1)
    fill(place, SPARE_BYTES - (1 << 20))
    node.engine.behaviour.release.set()
    batch = ended(node, batch_id)
    assert (batch["status"], batch["completed_at"]) == ("failed", None)
    (error,) = batch["errors"]["data"]
    assert (error["code"], error["line"]) == ("storage_full", None)
    kept = content(node, batch["output_file_id"])
    counts = batch["request_counts"]
    assert counts == {"total": 200, "completed": len(kept), "failed": 0}
    assert 1 < len(kept) < 200
    assert {said(item) for item in kept.values()} == set(kept)
    billed = results(node)
    assert [e.outcome for e in billed] == ["ok"] * len(kept), "a bill for each result, no other"
    assert batch["usage"]["total_tokens"] == sum(
        e.tokens.prompt + e.tokens.generated for e in billed
    )
    again = ended(node, begin_again(node, batch)["id"])
    assert again["errors"]["data"][0]["code"] == "storage_full"
    assert len(results(node)) == len(billed), "nothing more was computed"
    (place / "others").unlink()
    assert ended(node, begin_again(node, batch)["id"])["status"] == "completed"


def begin_again(node: Node, batch: dict[str, Any]) -> Any:
    body = {key: batch[key] for key in ("input_file_id", "endpoint", "completion_window")}
    answer = node.request("POST", "/v1/batches", body)
    assert answer.status == 200, answer.body
    return answer.json


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_half_of_what_is_free_for_the_log_is_not_for_running_lines_either(
    cramped: tuple[Node, Path],
) -> None:
    node, place = cramped
    node.engine.behaviour.pause_after = 3
    batch_id = begin(node, lines("line-a"))["id"]
    running(node, 1)
    fill(place, SPARE_BYTES // 2)
    node.engine.behaviour.release.set()
    batch = ended(node, batch_id)
    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == (
        "failed", None, None,
    )  # fmt: skip
    assert batch["errors"]["data"][0]["code"] == "storage_full"
    (event,) = results(node)
    assert (event.outcome, event.code) == ("error", "storage_full")
    assert event.tokens.generated == len("line-a") + 1, "it was computed, and not again"
    assert batch["request_counts"] == {"total": 1, "completed": 0, "failed": 0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_nor_is_it_for_the_errors_of_running_lines(cramped: tuple[Node, Path]) -> None:
    node, place = cramped
    node.engine.behaviour.pause_after = 3
    node.engine.behaviour.fault = Fault(grpc.StatusCode.INVALID_ARGUMENT, after_tokens=5)
    batch_id = begin(node, lines("line-a"))["id"]
    running(node, 1)
    fill(place, SPARE_BYTES // 2)
    node.engine.behaviour.release.set()
    batch = ended(node, batch_id)
    assert (batch["status"], batch["error_file_id"]) == ("failed", None)
    assert batch["errors"]["data"][0]["code"] == "storage_full"
    assert [event.outcome for event in results(node)] == ["error"], "it was tried, and not again"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_lines_that_never_ran_leave_their_errors_out_where_the_disk_is_kept_for_the_log(
    tmp_path: Path,
) -> None:
    """The window is over, and an error line for each of them would use what is left free."""
    config = prepare(tmp_path, store_files=True, drain_seconds=0)
    place = config.layout.files_db.parent
    place.mkdir(parents=True, exist_ok=True)
    size = f"size={SPARE_BYTES + (8 << 20)}"
    names = [f"{n:04}-{'x' * 500}" for n in range(2000)]
    with (
        mounted(["-t", "tmpfs", "-o", size, "tmpfs", str(place)], place),
        FakeEngine(config.layout.engine_socket) as engine,
    ):
        engine.behaviour.pause_before_accept = True
        with running_shim(config):
            node = Node(config, engine)
            batch_id = begin(node, lines(*names))["id"]
            eventually(lambda: engine.running > 0)
        change(node, batch_id, expires_at=int(time.time()) - 1)
        fill(place, SPARE_BYTES + (1 << 20))
        with running_shim(config):
            batch = ended(node, batch_id)
            assert (batch["status"], batch["expired_at"]) == ("failed", None)
            (error,) = batch["errors"]["data"]
            assert error["code"] == "storage_full"
            told = content(node, batch["error_file_id"])
            assert 0 < len(told) < len(names), "what there was room for is kept"
            assert batch["request_counts"]["failed"] == len(told)
        assert shutil.disk_usage(place).free > SPARE_BYTES - (256 << 10)


def test_pages_of_batches_follow_each_other(client: openai.OpenAI, node: Node) -> None:
    made = [begin(node, lines("a"))["id"] for _ in range(4)]
    assert [b.id for b in client.batches.list(limit=2)] == made[::-1]
    first = client.batches.list(limit=2)
    assert first.has_more
    assert [b.id for b in first.data] == made[:-3:-1]


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/completions", {"model": CHAT, "prompt": "a"}),
        ("/v1/embeddings", {"model": EMBEDDING, "input": "a"}),
        ("/v1/responses", {"model": CHAT, "input": "a"}),
        ("/v1/rerank", {"model": RERANK, "query": "a b", "documents": ["b", "a b"]}),
        ("/v1/score", {"model": RERANK, "text_1": "a b", "text_2": ["b", "a b"]}),
    ],
)
def test_each_endpoint_answers_lines_as_it_answers_anybody(
    shared: Node, url: str, body: dict[str, Any]
) -> None:
    node = shared
    body = {"temperature": 0, **body} if body["model"] == CHAT else body
    batch = ended(node, begin(node, [line("a", url=url, body=body)], url=url)["id"])
    assert batch["status"] == "completed"
    item = content(node, batch["output_file_id"])["a"]
    direct = node.request("POST", url, body).json
    varying = ("id", "created", "created_at", "completed_at", "output", "usage")
    shown = [
        {k: v for k, v in answer.items() if k not in varying}
        for answer in (item["response"]["body"], direct)
    ]
    assert shown[0] == shown[1]
    assert (
        batch["usage"]["total_tokens"]
        == node.res(item["response"]["request_id"]).tokens.prompt
        + (batch["usage"]["output_tokens"])
    )


def test_lines_have_the_lowest_priority_the_batch_price_and_records_of_their_own(
    node: Node,
) -> None:
    with PriceTable(node.config.layout.prices_db) as prices:
        ordinary, half = (
            Tariff(2_000_000, 2_000_000, 2_000_000),
            Tariff(1_000_000, 1_000_000, 1_000_000),
        )
        prices.set(CHAT, ordinary, half)
    batch = ended(node, begin(node, lines("a", "b"))["id"])
    asked = [r for r in node.engine.requests if isinstance(r, pb.GenerateRequest)]
    assert [request.priority for request in asked] == [PRIORITY] * 2
    items = content(node, batch["output_file_id"])
    for item in items.values():
        record = node.res(item["response"]["request_id"])
        assert record.batch
        assert record.route == CHAT_PATH
        assert record.cost == record.tokens.prompt + record.tokens.generated
        assert node.req(record.request_id).key_id == node.key.id
        row = node.row(record.request_id)
        assert (row.batch, row.cost) == (1, record.cost)
    node.request("POST", CHAT_PATH, ask())
    assert (
        asked[0].priority
        < [r.priority for r in node.engine.requests if isinstance(r, pb.GenerateRequest)][-1]
    )
    assert node.metric('appliance_batch_lines_total{outcome="completed"}') == 2
    assert node.metric("appliance_batches_in_progress") == 0


def test_a_line_that_is_refused_is_an_error_and_the_others_go_on(node: Node) -> None:
    wrong = line("bad")
    wrong["body"]["temperature"] = 9
    strange = line("strange")
    strange["body"]["unheard_of"] = 1
    batch = ended(node, begin(node, [line("a"), wrong, strange, line("b")])["id"])
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    assert set(content(node, batch["output_file_id"])) == {"a", "b"}
    errors = content(node, batch["error_file_id"])
    assert set(errors) == {"bad", "strange"}
    answer = errors["bad"]["response"]
    assert answer["status_code"] == 400
    assert answer["body"]["error"]["param"] == "temperature"
    assert node.reject(answer["request_id"]).code == "invalid_value"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\n \n", [("empty_file", None, None)]),
        (jsonl([line("a")]) + b"{\n", [("invalid_json_line", 2, None)]),
        (jsonl([line("a"), line("b"), line("a")]), [("duplicate_custom_id", 3, "custom_id")]),
        (jsonl([line("a", method="GET")]), [("invalid_method", 1, "method")]),
        (jsonl([line("a", url="/v1/embeddings")]), [("invalid_url", 1, "url")]),
        (jsonl([{"custom_id": "a"}]), [("invalid_request", 1, "method")]),
        (jsonl([line("a", body={})]), [("invalid_request", 1, "body.model")]),
        (jsonl([line("a", body=1)]), [("invalid_request", 1, "body")]),
        (b'{"custom_id": 1, "body": [\n', [("invalid_request", 1, "custom_id")]),
        (b"{\n" + jsonl([line("a"), line("b")]), [("invalid_json_line", 1, None)]),
        (
            jsonl([line("a"), line("b", body={"model": EMBEDDING})]),
            [("mismatched_model", 2, "body.model")],
        ),
        (jsonl([line("a", body={"model": "nobody"})]), [("model_not_found", 1, "body.model")]),
        (
            jsonl([line("a", body={"model": CHAT, "stream": True})]),
            [("invalid_value", 1, "body.stream")],
        ),
        (
            jsonl([line("a", body={"model": CHAT, "background": True})]),
            [("invalid_value", 1, "body.background")],
        ),
        (b"\n" + b"x" * 70_000, [("line_too_long", 2, None)]),
        (jsonl([{}] * 300), [("invalid_request", n, "custom_id") for n in range(1, 101)]),
    ],
)
def test_a_file_that_is_no_batch_fails_with_the_lines_that_are_wrong(
    shared: Node, data: bytes, expected: list[Any]
) -> None:
    body, headers = form(data, purpose="batch")
    file = shared.request("POST", "/v1/files", body, headers=headers).json
    asked = {"input_file_id": file["id"], "endpoint": CHAT_PATH, "completion_window": "24h"}
    before = len(results(shared))
    batch = ended(shared, shared.request("POST", "/v1/batches", asked).json["id"])
    assert batch["status"] == "failed"
    found = [(e["code"], e["line"], e["param"]) for e in batch["errors"]["data"]]
    assert found == expected
    assert batch["failed_at"]
    assert len(results(shared)) == before


def test_a_result_is_one_line_however_its_reader_ends_lines(shared: Node) -> None:
    """Python's splitlines, which SDK users write, ends them at some of Unicode's characters too."""
    text = "a\x85b\u2028c\u2029d\x0be"
    batch = ended(shared, begin(shared, [line("a", text), line("b", text)])["id"])
    answer = shared.request("GET", f"/v1/files/{batch['output_file_id']}/content")
    found = answer.body.decode().splitlines()
    assert len(found) == 2
    assert {said(json.loads(one)) for one in found} == {text}


def test_a_file_as_windows_writes_it_is_a_batch(shared: Node) -> None:
    """With a byte order mark, and two characters at the end of a line."""
    data = b"\xef\xbb\xbf" + jsonl(lines("a", "b")).replace(b"\n", b"\r\n")
    body, headers = form(data, purpose="batch")
    file = shared.request("POST", "/v1/files", body, headers=headers).json
    asked = {"input_file_id": file["id"], "endpoint": CHAT_PATH, "completion_window": "24h"}
    batch = ended(shared, shared.request("POST", "/v1/batches", asked).json["id"])
    assert batch["status"] == "completed"
    assert content(shared, batch["output_file_id"]).keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"endpoint": "/v1/moderations"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"input_file_id": "file-0"}, 404, None),
        ({"more": 1}, 400, "more"),
        ({"metadata": {"a": 1}}, 400, "metadata"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            400,
            "output_expires_after.seconds",
        ),
    ],
)
def test_a_wrong_order_is_refused_by_name(
    shared: Node, change: dict[str, Any], status: int, param: str | None
) -> None:
    node = shared
    before = node.request("GET", "/v1/batches").json["data"]
    body = {
        "input_file_id": upload(node, lines("a"))["id"],
        "endpoint": CHAT_PATH,
        "completion_window": "24h",
    }
    answer = node.request("POST", "/v1/batches", {**body, **change})
    assert answer.status == status
    assert param is None or (answer.error["param"] or "").startswith(param)
    assert node.request("GET", "/v1/batches").json["data"] == before


def test_a_key_has_so_many_batches_at_once(node: Node) -> None:
    node.engine.behaviour.pause_after = 0
    file_id = upload(node, lines("a"))["id"]
    body = {"input_file_id": file_id, "endpoint": CHAT_PATH, "completion_window": "24h"}
    made = [node.request("POST", "/v1/batches", body) for _ in range(MAX_RUNNING + 1)]
    assert [answer.status for answer in made] == [200] * MAX_RUNNING + [429]
    assert made[-1].error["code"] == "too_many_batches"
    before = len(node.events())
    with (
        openai.OpenAI(base_url=node.base_url, api_key=node.secret, max_retries=5) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    assert "retry-after" not in caught.value.response.headers
    assert len(node.events()) == before + 1, "one REJECT: the SDK did not try again"
    node.engine.behaviour.release.set()
    ended(node, made[0].json["id"])
    assert node.request("POST", "/v1/batches", body).status == 200


def test_a_result_is_no_input(shared: Node) -> None:
    node = shared
    batch = ended(node, begin(node, lines("a"))["id"])
    body = {
        "input_file_id": batch["output_file_id"],
        "endpoint": CHAT_PATH,
        "completion_window": "24h",
    }
    answer = node.request("POST", "/v1/batches", body)
    assert (answer.status, answer.error["param"]) == (400, "input_file_id")


def test_a_cancelled_batch_stops_at_once_and_keeps_what_is_finished(node: Node) -> None:
    node.engine.behaviour.pause_after = 7
    batch_id = begin(node, [*lines("a", "b"), line("long", "x" * 50)])["id"]
    eventually(lambda: look(node, batch_id)["request_counts"]["completed"] == 2)
    running(node, 1)
    (call,) = node.engine.under_way.values()
    eventually(lambda: call.sequences[0].generated_tokens == 7)
    answer = node.request("POST", f"/v1/batches/{batch_id}/cancel")
    assert answer.json["status"] in ("cancelling", "cancelled")
    batch = ended(node, batch_id)
    assert batch["status"] == "cancelled"
    assert batch["cancelling_at"] <= batch["cancelled_at"]
    assert set(content(node, batch["output_file_id"])) == {"a", "b"}
    assert batch["error_file_id"] is None
    node.engine.wait_until_idle()
    cut = eventually(lambda: [e for e in results(node) if e.outcome == "cancelled"])
    assert [e.tokens.generated for e in cut] == [7]
    again = node.request("POST", f"/v1/batches/{batch_id}/cancel")
    assert (again.status, again.error["code"]) == (409, "conflict")


def test_the_input_of_a_running_batch_cannot_be_deleted(node: Node) -> None:
    node.engine.behaviour.pause_after = 0
    made = begin(node, lines("a"))
    running(node, 1)
    path = f"/v1/files/{made['input_file_id']}"
    answer = node.request("DELETE", path)
    assert (answer.status, answer.error["code"]) == (409, "conflict")
    node.request("POST", f"/v1/batches/{made['id']}/cancel")
    ended(node, made["id"])
    assert node.request("DELETE", path).status == 200


def test_another_key_s_batch_does_not_exist(node: Node) -> None:
    made = begin(node, lines("a"))
    with KeyStore(node.config.layout.keys_db) as keys:
        _, other = keys.create("other")
    headers = {"Authorization": f"Bearer {other}"}
    for method, path in (("GET", ""), ("POST", "/cancel")):
        answer = node.request(method, f"/v1/batches/{made['id']}{path}", headers=headers)
        assert (answer.status, answer.error["code"]) == (404, "batch_not_found")
    assert node.request("GET", "/v1/batches", headers=headers).json["data"] == []
    body = {
        "input_file_id": made["input_file_id"],
        "endpoint": CHAT_PATH,
        "completion_window": "24h",
    }
    assert node.request("POST", "/v1/batches", body, headers=headers).status == 404


def test_lines_leave_a_slot_of_the_engine_to_whoever_comes_next(node: Node) -> None:
    most = node.engine.models[CHAT].max_sequences - 1
    node.engine.behaviour.pause_after = 0
    streams = [node.stream(ask(stream=True)) for _ in range(most - 3)]
    running(node, most - 3)
    batch_id = begin(node, lines())["id"]
    running(node, most)
    time.sleep(0.3)
    assert node.engine.running == most
    for stream in streams:
        stream.hang_up()
    running(node, len(NAMES))
    node.engine.behaviour.release.set()
    assert ended(node, batch_id)["request_counts"]["completed"] == len(NAMES)


def test_what_passes_is_tried_again_and_billed_once(node: Node) -> None:
    node.engine.behaviour.fault = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, code="queue_full")
    batch_id = begin(node, lines("a"))["id"]
    eventually(lambda: [e for e in node.events() if isinstance(e, Reject)])
    assert look(node, batch_id)["request_counts"] == {"total": 1, "completed": 0, "failed": 0}
    node.engine.behaviour.fault = None
    batch = ended(node, batch_id)
    assert batch["request_counts"]["completed"] == 1
    assert [e.outcome for e in results(node)] == ["ok"]


def test_a_model_that_goes_and_comes_back_is_waited_for(node: Node) -> None:
    node.engine.behaviour.pause_after = 0
    batch_id = begin(node, lines(*NAMES))["id"]
    running(node, len(NAMES))
    model = node.engine.models.pop(CHAT)
    node.engine.behaviour.fault = Fault(grpc.StatusCode.UNAVAILABLE, after_tokens=0)
    node.engine.behaviour.release.set()
    eventually(lambda: [e for e in node.events() if getattr(e, "code", "") == "model_not_found"])
    node.engine.behaviour.fault = None
    node.engine.models[CHAT] = model
    batch = ended(node, batch_id)
    assert batch["request_counts"] == {"total": 12, "completed": 12, "failed": 0}


def test_a_model_that_is_being_loaded_is_waited_for_before_the_lines_are_looked_at(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.engine.models[CHAT].state = pb.MODEL_STATE_LOADING
    batch_id = begin(node, lines("a"))["id"]
    eventually(lambda: "model_loading" in caplog.text)
    node.engine.models[CHAT].state = pb.MODEL_STATE_SERVING
    assert ended(node, batch_id)["request_counts"]["completed"] == 1


def test_a_fault_that_stays_becomes_an_error_after_three_tries(node: Node) -> None:
    node.engine.behaviour.fault = Fault(grpc.StatusCode.INTERNAL, after_tokens=1)
    batch = ended(node, begin(node, lines("a"))["id"])
    assert batch["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
    (error,) = content(node, batch["error_file_id"]).values()
    assert error["response"]["body"]["error"]["code"] == "engine_error"
    assert [e.outcome for e in results(node)] == ["error"] * 3


def test_a_budget_that_is_used_up_gives_errors_and_an_end(node: Node) -> None:
    price = len("user: line-0\n") + len("line-0") + 1
    limited = lines(*NAMES[:6])
    for item in limited:
        item["body"]["max_tokens"] = len("line-0") + 1
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.limit(node.key.id, {"tokens_per_day": 3 * price})
    batch = ended(node, begin(node, limited)["id"])
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 6, "completed": 3, "failed": 3}
    for error in content(node, batch["error_file_id"]).values():
        assert error["response"]["status_code"] == 429
        assert error["response"]["body"]["error"]["code"] == "insufficient_quota"


def test_a_limit_on_parallel_requests_leaves_half_to_others(node: Node) -> None:
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.limit(node.key.id, {"parallel_requests": 4})
    node.engine.behaviour.pause_after = 0
    batch_id = begin(node, lines())["id"]
    running(node, 2)
    time.sleep(0.2)
    assert node.engine.running == 2
    node.engine.behaviour.release.set()
    assert ended(node, batch_id)["request_counts"]["completed"] == len(NAMES)


def test_a_revoked_key_gives_errors_and_an_end(node: Node) -> None:
    with KeyStore(node.config.layout.keys_db) as keys:
        reader = new_key("reader", lineage=node.key.lineage)
        keys.add(reader)
    node.engine.behaviour.pause_after = 2
    batch_id = begin(node, [line("a"), line("long", "x" * 50), *lines(*NAMES)])["id"]
    eventually(lambda: look(node, batch_id)["request_counts"]["completed"] == 1)
    running(node, 1 + len(NAMES))
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.revoke(node.key.id)
    node.secret = reader.secret
    batch = ended(node, batch_id)
    assert batch["status"] == "completed"
    assert batch["request_counts"]["completed"] == 1
    assert batch["request_counts"]["failed"] == 1 + len(NAMES)
    for error in content(node, batch["error_file_id"]).values():
        assert error["response"]["status_code"] == 401
        assert error["response"]["body"]["error"]["code"] == "key_revoked"


def test_a_rotated_key_s_batch_goes_on_for_its_successor(node: Node) -> None:
    node.engine.behaviour.pause_after = 0
    batch_id = begin(node, lines("a", "b"))["id"]
    running(node, 2)
    successor = new_key("next", lineage=node.key.lineage)
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.limit(node.key.id, {"parallel_requests": 2})
        keys.rotate(node.key.id, successor, overlap=0)
    node.secret = successor.secret
    node.engine.behaviour.release.set()
    assert ended(node, batch_id)["request_counts"]["completed"] == 2


def test_a_key_needs_the_apis_of_the_lines_too(node: Node) -> None:
    narrow = new_key("narrow", apis=("files", "batches", "chat"))
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.add(narrow)
    node.secret = narrow.secret
    body = {
        "input_file_id": upload(node, lines("a"))["id"],
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    }
    answer = node.request("POST", "/v1/batches", body)
    assert (answer.status, answer.error["code"]) == (403, "insufficient_permissions")
    assert ended(node, begin(node, lines("a"))["id"])["request_counts"]["completed"] == 1


def test_a_model_that_the_key_may_not_use_fails_the_batch(node: Node) -> None:
    narrow = new_key("narrow", models=(EMBEDDING,))
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.add(narrow)
    node.secret = narrow.secret
    batch = ended(node, begin(node, lines("a"))["id"])
    assert [e["code"] for e in batch["errors"]["data"]] == ["model_not_allowed"]


def change(node: Node, batch_id: str, **fields: Any) -> None:
    """Edit a batch in the database of a node that is down."""
    with closing(sqlite3.connect(node.config.layout.files_db)) as database, database:
        query = "SELECT body FROM batches WHERE id = ?"
        body = msgspec.json.decode(database.execute(query, (batch_id,)).fetchone()[0])
        database.execute(
            "UPDATE batches SET body = ? WHERE id = ?",
            (msgspec.json.encode({**body, **fields}), batch_id),
        )


def test_a_stop_lets_lines_end_and_the_next_start_goes_on(tmp_path: Path) -> None:
    config = prepare(tmp_path, store_files=True)
    with FakeEngine(config.layout.engine_socket) as engine:
        with running_shim(config) as shim:
            node = Node(config, engine)
            engine.behaviour.pause_after = 7
            batch_id = begin(node, [*lines("a"), line("long", "x" * 50)])["id"]
            eventually(lambda: look(node, batch_id)["request_counts"]["completed"] == 1)
            shim.stop()
            engine.behaviour.release.set()
        with running_shim(config):
            assert ended(node, batch_id)["request_counts"]["completed"] == 2
            done = [e for e in results(node) if e.outcome == "ok"]
            assert len(done) == 2


def test_a_batch_whose_window_is_over_keeps_what_is_finished(tmp_path: Path) -> None:
    config = prepare(tmp_path, store_files=True, drain_seconds=0)
    with FakeEngine(config.layout.engine_socket) as engine:
        with running_shim(config):
            node = Node(config, engine)
            engine.behaviour.pause_after = 7
            batch_id = begin(node, [*lines("a"), line("long", "x" * 50), line("more", "y" * 50)])[
                "id"
            ]
            eventually(lambda: look(node, batch_id)["request_counts"]["completed"] == 1)
        change(node, batch_id, expires_at=int(time.time()) + 1)
        with running_shim(config):
            batch = ended(node, batch_id)
            assert batch["status"] == "expired"
            assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
            assert set(content(node, batch["output_file_id"])) == {"a"}
            errors = content(node, batch["error_file_id"])
            assert set(errors) == {"long", "more"}
            for error in errors.values():
                assert error["response"] is None
                assert error["error"]["code"] == "batch_expired"
        engine.wait_until_idle()


def test_a_batch_that_ended_long_ago_is_forgotten(tmp_path: Path) -> None:
    config = prepare(tmp_path, store_files=True)
    with FakeEngine(config.layout.engine_socket) as engine:
        with running_shim(config):
            node = Node(config, engine)
            batch = ended(node, begin(node, lines("most-private"))["id"])
        with closing(sqlite3.connect(config.layout.files_db)) as database, database:
            database.execute("UPDATE batches SET ended = 0")
            database.execute("UPDATE files SET expires = 0")
        with running_shim(config):
            path = f"/v1/batches/{batch['id']}"
            eventually(lambda: node.request("GET", path).status == 404)
            eventually(lambda: b"most-private" not in config.layout.files_db.read_bytes())
