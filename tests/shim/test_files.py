"""Files: off unless switched on, of one lineage of keys, bounded, gone when deleted."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from appliance.access import KeyStore, new_key
from appliance.audit.event import Reject, Request
from appliance.config import ApiSettings
from appliance.shim.batches import schema
from appliance.shim.batches.file_store import SPARE_BYTES, FileStore
from appliance.shim.content_database import ContentDatabase
from tests.fakes.engine import FakeEngine
from tests.node.machine import mounted
from tests.shim.batch_input import form, jsonl, line, upload
from tests.shim.node import PATIENCE, Answer, Node, eventually, prepare, running_shim, standing

LIMIT = 1 << 20


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node whose operator lets callers keep files."""
    with standing(tmp_path, store_files=True, max_file_bytes=LIMIT) as made:
        yield made


def send(node: Node, data: bytes, **fields: str) -> Answer:
    body, headers = form(data, **fields)
    return node.request("POST", "/v1/files", body, headers=headers)


def disk(node: Node) -> bytes:
    """All that the database has on the disk."""
    return node.config.layout.files_db.read_bytes()


def test_the_strict_sdk_uploads_lists_reads_and_deletes(client: openai.OpenAI) -> None:
    data = jsonl([line("a")])
    made = client.files.create(
        file=("requests.jsonl", data),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert (made.filename, made.bytes, made.purpose) == ("requests.jsonl", len(data), "batch")
    assert made.expires_at == made.created_at + 7200
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == data
    other = client.files.create(file=("b.jsonl", b"{}"), purpose="batch")
    assert [f.id for f in client.files.list()] == [other.id, made.id]
    assert [f.id for f in client.files.list(limit=1, order="asc")] == [made.id, other.id]
    assert not list(client.files.list(purpose="batch_output"))
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)
    assert [f.id for f in client.files.list()] == [other.id]


def test_a_large_file_comes_back_as_it_went(node: Node) -> None:
    data = os.urandom(LIMIT)
    made = send(node, data, purpose="batch").json
    assert made["bytes"] == LIMIT
    assert node.request("GET", f"/v1/files/{made['id']}/content").body == data
    head = node.request("HEAD", f"/v1/files/{made['id']}/content")
    assert (head.status, head.headers["content-length"]) == (200, str(LIMIT))


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "purpose", "missing_parameter"),
        ({"purpose": "assistants"}, "purpose", "invalid_value"),
        ({"purpose": "batch", "more": "x"}, "more", "unknown_parameter"),
        (
            {"purpose": "batch", "expires_after[seconds]": "7200"},
            "expires_after[anchor]",
            "missing_parameter",
        ),
        (
            {
                "purpose": "batch",
                "expires_after[anchor]": "created_at",
                "expires_after[seconds]": "1",
            },
            "expires_after[seconds]",
            "invalid_value",
        ),
    ],
)
def test_a_wrong_form_is_refused_by_name_and_leaves_nothing(
    node: Node, fields: dict[str, str], param: str, code: str
) -> None:
    answer = send(node, b"most private", **fields)
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)
    assert node.request("GET", "/v1/files").json["data"] == []
    assert b"most private" not in disk(node)


def test_more_than_a_file_may_have_is_refused_before_it_is_read(node: Node) -> None:
    connection = node.connect()
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Authorization", f"Bearer {node.secret}")
    connection.putheader("Content-Type", "multipart/form-data; boundary=xyz")
    connection.putheader("Content-Length", str(2 * LIMIT))
    connection.endheaders()
    with closing(connection):
        assert connection.getresponse().status == 413


def test_more_than_a_file_may_have_is_refused_while_it_is_read(node: Node) -> None:
    def chunks() -> Iterator[bytes]:
        body, _ = form(b"most private" * LIMIT, purpose="batch")
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    connection = node.connect()
    headers = {
        "Authorization": f"Bearer {node.secret}",
        "Content-Type": "multipart/form-data; boundary=xyz",
    }
    with closing(connection):
        try:
            connection.request("POST", "/v1/files", chunks(), headers, encode_chunked=True)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was refused, and closed, before all of it was sent
        else:
            assert connection.getresponse().status == 413
    (reject,) = [e for e in node.events() if isinstance(e, Reject)]
    assert (reject.status, reject.code) == (413, "file_too_large")
    assert b"most private" not in disk(node)


def test_an_upload_that_breaks_off_leaves_nothing(node: Node) -> None:
    connection = http.client.HTTPConnection(
        "127.0.0.1", node.config.api.listen_port, timeout=PATIENCE
    )
    body, _ = form(b"most private" * 50_000, purpose="batch")
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Authorization", f"Bearer {node.secret}")
    connection.putheader("Content-Type", "multipart/form-data; boundary=xyz")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    connection.send(body[:-10])
    connection.close()

    def gone() -> bool:
        rejects = [e for e in node.events() if isinstance(e, Reject)]
        return [e.code for e in rejects] == ["disconnected"]

    eventually(gone)
    assert b"most private" not in disk(node)


def test_all_files_together_are_bounded(tmp_path: Path) -> None:
    with standing(tmp_path, store_files=True, max_stored_bytes=100_000) as node:
        first = send(node, b"x" * 90_000, purpose="batch")
        assert first.status == 200
        answer = send(node, b"x" * 20_000, purpose="batch")
        assert (answer.status, answer.error["code"]) == (429, "storage_full")
        assert answer.headers["x-should-retry"] == "false"
        node.request("DELETE", f"/v1/files/{first.json['id']}")
        assert send(node, b"x" * 20_000, purpose="batch").status == 200


def test_whether_there_is_room_is_known_while_the_database_writes(tmp_path: Path) -> None:
    """Lines of a batch begin while a large file is overwritten, and while a disk is slow."""
    written = threading.Event()

    async def asked() -> None:
        words = {"what": "files", "hint": ""}
        database = ContentDatabase(tmp_path / "files", schema.VERSION, schema.create, **words)
        writing = asyncio.create_task(database.run(lambda _: written.wait()))
        try:
            async with asyncio.timeout(PATIENCE):
                await FileStore(database, LIMIT).check_room()
            assert not writing.done()
        finally:
            written.set()
            await writing
            await database.close()

    asyncio.run(asked())


def test_a_deleted_file_is_gone_from_the_disk_too(node: Node) -> None:
    made = send(node, b"most private" * 50_000, purpose="batch").json
    assert b"most private" in disk(node)
    assert node.request("DELETE", f"/v1/files/{made['id']}").json["deleted"]
    assert b"most private" not in disk(node)
    assert node.config.layout.files_db.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_files_leave_room_on_the_disk_and_can_be_deleted_when_others_filled_it(
    tmp_path: Path,
) -> None:
    """What is overwritten is copied beside first, and there is no room for a whole file's copy."""
    config = prepare(tmp_path, store_files=True)
    small = config.layout.files_db.parent
    small.mkdir(parents=True, exist_ok=True)
    size = SPARE_BYTES + (8 << 20)
    with (
        mounted(["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], small),
        FakeEngine(config.layout.engine_socket) as engine,
        running_shim(config),
    ):
        node = Node(config, engine)
        made = send(node, b"secret " * 900_000, purpose="batch").json
        refused = send(node, b"x" * 4_000_000, purpose="batch")
        assert (refused.status, refused.error["code"]) == (429, "storage_full")
        assert refused.headers["x-should-retry"] == "false"
        with (small / "others").open("wb") as others:
            os.posix_fallocate(others.fileno(), 0, shutil.disk_usage(small).free - (2 << 20))
        assert node.request("DELETE", f"/v1/files/{made['id']}").status == 200
        assert b"secret secret" not in disk(node)


def test_what_could_not_be_overwritten_is_overwritten_after_the_next_start(tmp_path: Path) -> None:
    config = prepare(tmp_path, store_files=True)
    with FakeEngine(config.layout.engine_socket) as engine:
        with running_shim(config):
            node = Node(config, engine)
            made = upload(node, [line("a", "most secret")])
            with closing(sqlite3.connect(config.layout.files_db)) as database, database:
                database.execute("UPDATE files SET ready = 0")
            assert node.request("GET", f"/v1/files/{made['id']}").status == 404
            assert b"most secret" in disk(node)
        with running_shim(config):
            assert b"most secret" not in disk(node)


def test_an_expired_file_is_not_there_and_then_gone(tmp_path: Path) -> None:
    config = prepare(tmp_path, store_files=True)
    with FakeEngine(config.layout.engine_socket) as engine:
        with running_shim(config):
            node = Node(config, engine)
            made = send(node, b"most private" * 10, purpose="batch").json
            with closing(sqlite3.connect(config.layout.files_db)) as database, database:
                database.execute("UPDATE files SET expires = ?", (int(time.time()) - 1,))
            answer = node.request("GET", f"/v1/files/{made['id']}")
            assert (answer.status, answer.error["code"]) == (404, "file_not_found")
            assert node.request("GET", "/v1/files").json["data"] == []
        with running_shim(config):
            eventually(lambda: b"most private" not in disk(node))


def test_a_rotated_key_has_its_files_and_another_has_not(node: Node) -> None:
    made = upload(node, [line("a")])
    with KeyStore(node.config.layout.keys_db) as keys:
        successor = new_key("test", lineage=node.key.lineage)
        keys.rotate(node.key.id, successor, overlap=0)
        _, other = keys.create("other")

    def ask(secret: str, method: str = "GET", path: str = "") -> Answer:
        headers = {"Authorization": f"Bearer {secret}"}
        return node.request(method, f"/v1/files/{made['id']}{path}", headers=headers)

    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answer = ask(other, method, path)
        assert (answer.status, answer.error["code"]) == (404, "file_not_found")
    assert ask(successor.secret).json == made
    assert ask(successor.secret, "DELETE").status == 200


def test_content_that_comes_and_goes_is_on_record_and_costs_nothing(node: Node) -> None:
    body, headers = form(jsonl([line("a")]), purpose="batch")
    made = node.request("POST", "/v1/files", body, headers=headers)
    read = node.request("GET", f"/v1/files/{made.json['id']}/content")
    gone = node.request("DELETE", f"/v1/files/{made.json['id']}")
    routes = [e.route for e in node.events() if isinstance(e, Request)]
    assert routes == ["/v1/files", "/v1/files/{file_id}/content", "/v1/files/{file_id}"]
    for answer in (made, read, gone):
        assert node.res(answer.request_id).outcome == "ok"
        assert "in.jsonl" not in repr(node.req(answer.request_id))


def test_switched_off_everything_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    config = prepare(tmp_path, store_files=True)
    off = replace(config, api=ApiSettings(listen_port=config.api.listen_port))
    with FakeEngine(config.layout.engine_socket) as engine:
        with running_shim(config):
            node = Node(config, engine)
            made = upload(node, [line("a")])
        with running_shim(off):
            assert not config.layout.files_db.exists()
            batch: dict[str, Any] = {
                "input_file_id": made["id"],
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            }
            for answer in (
                send(node, b"{}", purpose="batch"),
                node.request("GET", "/v1/files"),
                node.request("GET", f"/v1/files/{made['id']}"),
                node.request("POST", "/v1/batches", batch),
                node.request("GET", "/v1/batches"),
            ):
                assert (answer.status, answer.error["code"]) == (400, "files_not_kept")
                assert "api.store_files" in answer.error["message"]
