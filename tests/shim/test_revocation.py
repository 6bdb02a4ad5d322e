"""A key that stops, stops everything: what begins, what waits and what streams."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import openai
import pytest
from typer.testing import CliRunner

from appliance.access import KeyStore, new_key, new_project
from appliance.audit.event import Request
from installer.cli.app import app
from tests.fakes.engine import CHAT, EMBEDDING
from tests.shim.node import PATIENCE, Node, ask, eventually
from tests.shim.test_accounting import assert_billed

CHAT_PATH = "/v1/chat/completions"


def revoke(node: Node, key_id: str) -> None:
    """With the operator's command."""
    root = str(node.config.layout.root)
    result = CliRunner().invoke(app, ["keys", "revoke", key_id, "--root", root])
    assert result.exit_code == 0, result.output


def new_secret(node: Node, **more: object) -> tuple[str, str]:
    """(id, secret) of another key."""
    key = new_key("other", **more)  # type: ignore[arg-type]
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.add(key)
    return key.info.id, key.secret


@pytest.mark.parametrize("pause_after", [0, 3])
def test_a_stream_of_a_revoked_key_is_cut_with_an_error_and_an_exact_bill(
    node: Node, pause_after: int
) -> None:
    node.engine.behaviour.pause_after = pause_after
    answer = node.stream(ask(stream=True))
    frames = iter(answer)
    for _ in range(1 + pause_after):
        next(frames)
    revoke(node, node.key.id)
    documents = [frame for frame in frames if frame.startswith(b"data: ")]
    assert b'"key_revoked"' in documents[-1]
    assert b"[DONE]" not in b"".join(documents)
    res = assert_billed(node, answer.request_id)
    assert (res.outcome, res.code, res.status) == ("error", "key_revoked", 200)
    assert res.tokens.generated == pause_after
    assert node.engine.calls[answer.request_id].cancelled


def test_the_sdk_raises_in_the_middle_of_a_stream(node: Node, client: openai.OpenAI) -> None:
    node.engine.behaviour.pause_after = 2
    chunks = client.chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": "hello"}], stream=True
    )
    next(chunks)
    revoke(node, node.key.id)
    with pytest.raises(openai.APIError, match="revoked"):
        list(chunks)


def test_a_whole_answer_of_a_revoked_key_is_a_401(node: Node) -> None:
    node.engine.behaviour.pause_after = 2
    answers = []
    caller = threading.Thread(target=lambda: answers.append(node.request("POST", CHAT_PATH, ask())))
    caller.start()
    eventually(lambda: [e for e in node.events() if isinstance(e, Request)])
    eventually(lambda: node.engine.last_call().sequences[0].generated_tokens == 2)
    revoke(node, node.key.id)
    caller.join(PATIENCE)
    assert (answers[0].status, answers[0].error["code"]) == (401, "key_revoked")
    assert assert_billed(node, answers[0].request_id).tokens.generated == 2


def test_a_request_that_waits_for_the_engine_is_not_admitted_after_a_revocation(
    node: Node,
) -> None:
    node.engine.behaviour.pause_before_accept = True
    answers = []
    caller = threading.Thread(target=lambda: answers.append(node.request("POST", CHAT_PATH, ask())))
    caller.start()
    eventually(lambda: node.engine.calls)
    revoke(node, node.key.id)
    node.engine.behaviour.release.set()
    caller.join(PATIENCE)
    assert (answers[0].status, answers[0].error["code"]) == (401, "key_revoked")
    assert node.reject(answers[0].request_id).code == "key_revoked"


def test_embeddings_of_a_revoked_key_are_not_given(node: Node) -> None:
    node.engine.behaviour.pause_before_accept = True
    answers = []
    body = {"model": EMBEDDING, "input": "abc"}
    caller = threading.Thread(
        target=lambda: answers.append(node.request("POST", "/v1/embeddings", body))
    )
    caller.start()
    eventually(lambda: node.engine.calls)
    revoke(node, node.key.id)
    caller.join(PATIENCE)
    assert (answers[0].status, answers[0].error["code"]) == (401, "key_revoked")


def test_archiving_a_project_cuts_its_streams_and_no_other(node: Node) -> None:
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.projects.add(new_project("search"))
        project = keys.projects.get("search").id
    _, secret = new_secret(node, project=project)
    node.engine.behaviour.pause_after = 1
    mine = node.stream(ask(stream=True))
    theirs = node.stream(ask(stream=True), secret=secret)
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.projects.archive(project)
    assert theirs.documents()[-1]["error"]["code"] == "key_revoked"
    node.engine.behaviour.release.set()
    assert mine.documents()[-1] == "[DONE]"


def test_no_record_of_admission_is_later_than_the_return_of_the_command(node: Node) -> None:
    node.engine.behaviour.seconds_per_step = 0.001

    def caller() -> None:
        connection = node.connect()
        while node.request("POST", CHAT_PATH, ask("x"), connection=connection).status != 401:
            pass
        connection.close()

    threads = [threading.Thread(target=caller) for _ in range(6)]
    for thread in threads:
        thread.start()
    eventually(lambda: len([e for e in node.events() if isinstance(e, Request)]) > 20)
    revoke(node, node.key.id)
    returned = datetime.now(UTC)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    times = [datetime.fromisoformat(e.t_utc) for e in node.events() if isinstance(e, Request)]
    assert times
    assert max(times) < returned


def test_an_api_key_never_opens_the_administration(node: Node) -> None:
    answer = node.request("GET", "/v1/organization/projects")
    assert answer.status in {403, 404}


def test_an_admin_key_opens_no_model(node: Node) -> None:
    _, secret = new_secret(node, kind="admin")
    headers = {"Authorization": f"Bearer {secret}"}
    for method, path, body in (
        ("POST", CHAT_PATH, ask()),
        ("POST", "/v1/embeddings", {"model": EMBEDDING, "input": "a"}),
        ("GET", "/v1/models", None),
    ):
        answer = node.request(method, path, body, headers=headers)
        assert (answer.status, answer.error["code"]) == (403, "insufficient_permissions")
    assert not node.engine.requests


def test_a_key_uses_the_models_and_apis_on_its_list(node: Node) -> None:
    _, secret = new_secret(node, models=[CHAT], apis=["chat", "embeddings"])
    headers = {"Authorization": f"Bearer {secret}"}
    assert node.request("POST", CHAT_PATH, ask(), headers=headers).status == 200
    listed = node.request("GET", "/v1/models", headers=headers).json["data"]
    assert [model["id"] for model in listed] == [CHAT]
    assert node.request("GET", f"/v1/models/{EMBEDDING}", headers=headers).status == 404
    body = {"model": EMBEDDING, "input": "a"}
    refused = node.request("POST", "/v1/embeddings", body, headers=headers)
    assert (refused.status, refused.error["code"]) == (403, "model_not_allowed")
    assert refused.error["param"] == "model"
    body = {"model": CHAT, "prompt": "a"}
    refused = node.request("POST", "/v1/completions", body, headers=headers)
    assert (refused.status, refused.error["code"]) == (403, "insufficient_permissions")
    assert node.reject(refused.request_id).code == "insufficient_permissions"


def test_the_sdk_raises_permission_denied(node: Node) -> None:
    _, secret = new_secret(node, models=["another"])
    with (
        openai.OpenAI(base_url=node.base_url, api_key=secret, max_retries=0) as client,
        pytest.raises(openai.PermissionDeniedError),
    ):
        client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "x"}])


def test_keys_of_a_project_share_a_cache_by_choice(node: Node) -> None:
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.projects.share_cache("default", shared=True)
    _, secret = new_secret(node)
    node.request("POST", CHAT_PATH, ask())
    answer = node.request("POST", CHAT_PATH, ask(), headers={"Authorization": f"Bearer {secret}"})
    assert node.row(answer.request_id).cached_tokens > 0


def test_records_name_the_project(node: Node) -> None:
    answer = node.request("POST", CHAT_PATH, ask())
    assert node.req(answer.request_id).tenant == node.key.project
    assert node.res(answer.request_id).tenant == node.key.project
