"""Who gets in: a key holds for a request, never for a connection."""

from __future__ import annotations

import threading
import time

from appliance.access import KeyStore
from appliance.audit.event import Response
from tests.shim.node import PATIENCE, Node, ask, eventually

CHAT_PATH = "/v1/chat/completions"


def test_a_revoked_key_stops_on_a_connection_that_is_open(node: Node) -> None:
    connection = node.connect()
    assert node.request("GET", "/v1/models", connection=connection).status == 200
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.revoke(node.key.id)
    answer = node.request("GET", "/v1/models", connection=connection)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    connection.close()


def test_no_request_is_admitted_after_a_revocation_under_load(node: Node) -> None:
    admitted_after: list[float] = []
    revoked_at = float("inf")

    def caller() -> None:
        connection = node.connect()
        while True:
            begin = time.monotonic()
            if node.request("POST", CHAT_PATH, ask("x"), connection=connection).status == 401:
                connection.close()
                return
            if begin > revoked_at:
                admitted_after.append(begin)

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len([e for e in node.events() if isinstance(e, Response)]) > 8)
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.revoke(node.key.id)
    revoked_at = time.monotonic()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert not admitted_after


def test_an_expired_key_is_refused(node: Node) -> None:
    with KeyStore(node.config.layout.keys_db) as keys:
        _, secret = keys.create("short", expires=int(time.time()) + 1)
    headers = {"Authorization": f"Bearer {secret}"}
    eventually(lambda: node.request("GET", "/v1/models", headers=headers).status == 401)


def test_each_key_is_billed_for_its_own(node: Node) -> None:
    with KeyStore(node.config.layout.keys_db) as keys:
        other, secret = keys.create("other")
    mine = node.request("POST", CHAT_PATH, ask())
    theirs = node.request("POST", CHAT_PATH, ask(), headers={"Authorization": f"Bearer {secret}"})
    assert node.row(mine.request_id).key_id == node.key.id
    assert node.row(theirs.request_id).key_id == other.id
    assert node.row(theirs.request_id).cached_tokens == 0, "no cache is shared between keys"


def test_the_scheme_may_be_written_in_any_case(node: Node) -> None:
    headers = {"Authorization": f"bearer  {node.secret} "}
    assert node.request("GET", "/v1/models", headers=headers).status == 200


def test_ids_are_made_here_and_never_taken_from_the_caller(node: Node) -> None:
    answer = node.request("GET", "/v1/models", headers={"X-Request-Id": "req_mine"})
    assert answer.request_id != "req_mine"


def test_a_forwarded_address_is_not_believed(node: Node) -> None:
    answer = node.request("POST", CHAT_PATH, ask(), headers={"X-Forwarded-For": "10.9.8.7"})
    assert node.req(answer.request_id).peer == "127.0.0.1"
