"""OpenAI's administration API through the unmodified SDK, checking every answer strictly."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import openai
import pytest
from openai.types.admin.organization.usage_costs_response import DataResultOrganizationCostsResult

from appliance.access import DEFAULT_PROJECT, NODE_TAG, KeyStore, new_key, new_project
from appliance.audit import admin_event
from appliance.audit.event import Admin, Response
from appliance.metering import PriceTable, Tariff
from tests.fakes.engine import CHAT, EMBEDDING, RERANK
from tests.shim.node import Answer, Node, ask

CHAT_PATH = "/v1/chat/completions"
DAY = 86_400
PROMPT, GENERATED = len("user: hello\n"), len("hello") + 1


@dataclass
class Office:
    """An admin key and the SDK that has it."""

    node: Node
    key_id: str
    secret: str
    client: openai.OpenAI

    def request(self, method: str, path: str, body: object = None) -> Answer:
        headers = {"Authorization": f"Bearer {self.secret}"}
        return self.node.request(method, f"/v1/organization/{path}", body, headers=headers)


@pytest.fixture
def office(node: Node) -> Iterator[Office]:
    key = new_key("ops", kind="admin", owner="Ada")
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.add(key)
    with openai.OpenAI(
        base_url=node.base_url,
        admin_api_key=key.secret,
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield Office(node, key.info.id, key.secret, client)


def serve_some(node: Node) -> None:
    """Two chats and an embedding, at a penny a token."""
    with PriceTable(node.config.layout.prices_db) as prices:
        prices.set(CHAT, Tariff(1_000_000, 500_000, 2_000_000))
    for _ in range(2):
        assert node.request("POST", CHAT_PATH, ask()).status == 200
    body = {"model": EMBEDDING, "input": "abc"}
    assert node.request("POST", "/v1/embeddings", body).status == 200


def spent(node: Node) -> int:
    return sum(e.cost for e in node.events() if isinstance(e, Response))


def test_usage_of_completions(office: Office) -> None:
    serve_some(office.node)
    start = int(time.time()) - DAY
    page = office.client.admin.organization.usage.completions(
        start_time=start, group_by=["project_id", "api_key_id", "model", "batch"]
    )
    assert page.object == "page"
    assert not page.has_more
    (result,) = [result for bucket in page.data for result in bucket.results]
    assert result.object == "organization.usage.completions.result"
    assert (result.num_model_requests, result.input_tokens) == (2, 2 * PROMPT)
    assert result.output_tokens == 2 * GENERATED
    assert result.input_cached_tokens == PROMPT - 1
    assert (result.project_id, result.api_key_id) == (office.node.key.project, office.node.key.id)
    assert (result.model, result.batch) == (CHAT, False)


def test_usage_of_embeddings(office: Office) -> None:
    serve_some(office.node)
    page = office.client.admin.organization.usage.embeddings(
        start_time=int(time.time()) - 60, bucket_width="1h", models=[EMBEDDING, "another"]
    )
    (result,) = [result for bucket in page.data for result in bucket.results]
    assert result.object == "organization.usage.embeddings.result"
    assert (result.num_model_requests, result.input_tokens, result.model) == (1, 3, None)
    page = office.client.admin.organization.usage.embeddings(
        start_time=int(time.time()) - 60, models=["another"]
    )
    assert [bucket.results for bucket in page.data if bucket.results] == []


def test_what_ranks_is_counted_with_embeddings_and_nothing_twice(office: Office) -> None:
    serve_some(office.node)
    pair = {"model": RERANK, "query": "a", "documents": ["b", "cd"]}
    asked = [("/v1/rerank", pair), ("/v2/rerank", pair)]
    asked.append(("/v1/score", {"model": RERANK, "text_1": "a", "text_2": "b"}))
    read = 0
    for path, body in asked:
        answer = office.node.request("POST", path, body)
        assert answer.status == 200
        read += answer.json["usage"]["prompt_tokens"]
    usage, start = office.client.admin.organization.usage, int(time.time()) - 60
    page = usage.embeddings(start_time=start, group_by=["model"])
    found = [r for bucket in page.data for r in bucket.results]
    shown = {
        r.model: (r.num_model_requests, r.input_tokens)
        for r in found
        if r.object == "organization.usage.embeddings.result"
    }
    assert shown == {EMBEDDING: (1, 3), RERANK: (3, read)}
    page = usage.completions(start_time=start)  # type: ignore[assignment]
    (result,) = [r for bucket in page.data for r in bucket.results]
    assert result.object == "organization.usage.completions.result"
    assert result.num_model_requests == 2


def test_costs_are_exact(office: Office) -> None:
    serve_some(office.node)
    start = int(time.time()) - 60
    page = office.client.admin.organization.usage.costs(start_time=start, group_by=["line_item"])
    results = {
        result.line_item: result.amount
        for bucket in page.data
        for result in bucket.results
        if result.object == "organization.costs.result"
    }
    assert set(results) == {CHAT, EMBEDDING}
    amount = results[CHAT]
    assert amount is not None
    assert amount.currency == "usd"
    assert amount.value == pytest.approx(spent(office.node) / 1e6)
    whole = office.request("GET", f"costs?start_time={start}").body
    micro = spent(office.node)
    assert f'"value":{micro // 10**6}.{micro % 10**6:06d}'.encode() in whole


def test_what_the_node_asked_is_one_group_without_a_key_and_without_a_project(
    office: Office,
) -> None:
    serve_some(office.node)
    with KeyStore(office.node.config.layout.keys_db) as keys:
        own = [keys.create(name, tags=(NODE_TAG,)) for name in ("bench", "ask", "ask")]
    for _, secret in own:
        headers = {"Authorization": f"Bearer {secret}"}
        assert office.node.request("POST", CHAT_PATH, ask(), headers=headers).status == 200
    usage, start = office.client.admin.organization.usage, int(time.time()) - 60
    by_key = usage.completions(start_time=start, group_by=["api_key_id", "model"])
    found = [r for bucket in by_key.data for r in bucket.results]
    counts = [
        (r.api_key_id, r.model, r.num_model_requests, r.input_tokens)
        for r in found
        if r.object == "organization.usage.completions.result"
    ]
    assert counts == [
        (office.node.key.id, CHAT, 2, 2 * PROMPT),
        (None, CHAT, 3, 3 * PROMPT),
    ]
    path = f"usage/completions?start_time={start}"
    for group, key in (("", None), ("&group_by=api_key_id", office.node.key.id)):
        answer = office.request("GET", f"{path}&group_by=project_id{group}").json
        assert [
            (r["project_id"], r["api_key_id"], r["num_model_requests"])
            for bucket in answer["data"]
            for r in bucket["results"]
        ] == [(DEFAULT_PROJECT, key, 2), (None, None, 3)]
    theirs = office.request("GET", f"{path}&project_ids={DEFAULT_PROJECT}").json
    assert [r["num_model_requests"] for b in theirs["data"] for r in b["results"]] == [2]
    whole = office.request("GET", f"costs?start_time={start}").json
    parts = office.request("GET", f"costs?start_time={start}&group_by[]=api_key_id").json
    (total,), split = (
        [r["amount"]["value"] for bucket in page["data"] for r in bucket["results"]]
        for page in (whole, parts)
    )
    assert len(split) == 2
    assert sum(split) == pytest.approx(total)
    assert total == pytest.approx(spent(office.node) / 1e6)


def test_buckets_are_whole_and_come_in_pages(office: Office) -> None:
    serve_some(office.node)
    now = int(time.time())
    start = now - 9 * DAY
    first = office.client.admin.organization.usage.costs(start_time=start, limit=4)
    assert len(first.data) == 4
    assert first.has_more
    assert first.next_page is not None
    buckets, page = list(first.data), first.next_page
    while page:
        following = office.client.admin.organization.usage.costs(
            start_time=start, limit=4, page=page
        )
        buckets += following.data
        page = following.next_page or ""
    assert len(buckets) in {10, 11}
    assert buckets[0].start_time == start // DAY * DAY
    for one, other in itertools.pairwise(buckets):
        assert one.end_time == other.start_time == one.start_time + DAY
    values = [
        r.amount.value
        for b in buckets
        for r in b.results
        if isinstance(r, DataResultOrganizationCostsResult) and r.amount is not None
    ]
    assert sum(filter(None, values)) == pytest.approx(spent(office.node) / 1e6)


def test_a_time_that_is_still_to_come_is_refused_by_its_own_name(office: Office) -> None:
    answer = office.request("GET", f"costs?start_time={int(time.time()) + DAY}")
    assert (answer.status, answer.json["error"]["param"]) == (400, "start_time")


def test_admin_keys_are_made_listed_and_deleted(office: Office) -> None:
    admin = office.client.admin.organization.admin_api_keys
    made = admin.create(name="robot", expires_in_seconds=3600)
    assert made.value.startswith(f"sk-admin-{made.id}-")
    assert made.expires_at == pytest.approx(made.created_at + 3600, abs=2)
    assert [key.id for key in admin.list()] == [office.key_id, made.id]
    assert [key.id for key in admin.list(order="desc", limit=1)] == [made.id, office.key_id]
    listed = admin.retrieve(made.id)
    assert listed.name == "robot"
    assert made.value not in listed.to_json()
    assert listed.redacted_value.startswith("sk-admin-")
    with openai.OpenAI(
        base_url=office.node.base_url, admin_api_key=made.value, max_retries=0
    ) as robot:
        assert len(robot.admin.organization.admin_api_keys.list().data) == 2
        assert admin.delete(made.id).deleted
        with pytest.raises(openai.AuthenticationError):
            robot.admin.organization.admin_api_keys.list()
    with pytest.raises(openai.NotFoundError):
        admin.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        admin.delete(office.node.key.id)
    records = [e for e in office.node.events() if isinstance(e, Admin)]
    assert [(r.action, r.target, r.actor) for r in records] == [
        ("keys.create", made.id, f"key:{office.key_id}"),
        ("keys.revoke", made.id, f"key:{office.key_id}"),
    ]


def test_projects_are_made_listed_and_archived(office: Office) -> None:
    projects = office.client.admin.organization.projects
    made = projects.create(name="search")
    assert [p.name for p in projects.list()] == ["default", "search"]
    assert projects.retrieve(made.id).status == "active"
    assert projects.archive(made.id).status == "archived"
    assert [p.name for p in projects.list()] == ["default"]
    every = projects.list(include_archived=True, limit=1)
    assert [p.name for p in every] == ["default", "search"], "the SDK turns the pages"
    with pytest.raises(openai.NotFoundError):
        projects.retrieve("default")
    with pytest.raises(openai.ConflictError):
        projects.create(name="search")


def test_audit_logs_are_the_newest_first(office: Office) -> None:
    layout, settings = office.node.config.layout, office.node.config.audit
    for action, target in (
        ("projects.create", "proj_a"),
        ("keys.create", "key-a"),
        ("models.activate", "guide"),
        ("keys.limit", "key-a"),
        ("keys.revoke", "key-a"),
    ):
        admin_event(layout, settings, action, target=target)
    made = office.client.admin.organization.admin_api_keys.create(name="robot")
    logs = office.client.admin.organization.audit_logs
    shown = list(logs.list(limit=2))
    assert [entry.type for entry in shown] == [
        "api_key.created",
        "api_key.deleted",
        "rate_limit.updated",
        "api_key.created",
        "project.created",
    ]
    by_key, by_login = shown[0], shown[1]
    assert by_key.actor is not None
    assert by_key.actor.api_key is not None
    assert by_key.actor.api_key.id == office.key_id
    assert by_key.api_key_created is not None
    assert by_key.api_key_created.id == made.id
    assert by_login.actor is not None
    assert by_login.actor.type == "session"
    assert by_login.effective_at == pytest.approx(time.time(), abs=60)
    created = logs.list(event_types=["api_key.created"], resource_ids=["key-a"])
    assert [entry.id for entry in created] == [shown[3].id]
    before = logs.list(before=shown[3].id, limit=1)
    assert [entry.id for entry in before.data] == [shown[2].id]
    assert before.has_more
    assert list(logs.list(effective_at={"gt": int(time.time()) + 60})) == []
    assert len(logs.list(actor_ids=[office.key_id]).data) == 1


def test_an_api_key_opens_none_of_it(node: Node) -> None:
    for path in ("usage/completions", "costs", "admin_api_keys", "projects", "audit_logs", "x"):
        answer = node.request("GET", f"/v1/organization/{path}?start_time=0")
        assert (answer.status, answer.error["code"]) == (403, "insufficient_permissions")


@pytest.mark.parametrize(
    ("path", "code", "param"),
    [
        ("usage/completions", "missing_parameter", "start_time"),
        ("usage/completions?start_time=x", "invalid_value", "start_time"),
        ("usage/completions?start_time=5&end_time=5", "invalid_value", "end_time"),
        ("usage/completions?start_time=5&bucket_width=1y", "invalid_value", "bucket_width"),
        ("usage/completions?start_time=5&limit=99", "invalid_value", "limit"),
        ("usage/completions?start_time=5&group_by[]=user_id", "invalid_value", "group_by"),
        ("usage/completions?start_time=5&user_ids[]=a", "unsupported_parameter", "user_ids"),
        ("usage/embeddings?start_time=5&batch=true", "unknown_parameter", "batch"),
        ("costs?start_time=5&models[]=a", "unknown_parameter", "models"),
        ("admin_api_keys?order=up", "invalid_value", "order"),
        ("admin_api_keys?after=nothing", "invalid_value", "after"),
        ("projects?colour=red", "unknown_parameter", "colour"),
        ("audit_logs?after=5", "invalid_value", "after"),
        ("audit_logs?actor_emails[]=a@b", "unsupported_parameter", "actor_emails"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(
    office: Office, path: str, code: str, param: str
) -> None:
    answer = office.request("GET", path)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("admin_api_keys", {}, "name"),
        ("admin_api_keys", {"name": "\n"}, "name"),
        ("admin_api_keys", {"name": "a", "expires_in_seconds": 0}, "expires_in_seconds"),
        ("projects", {"name": ""}, "name"),
        ("projects", {"name": "a", "geography": "EU"}, "geography"),
    ],
)
def test_a_body_that_does_not_fit_is_named(
    office: Office, path: str, body: dict[str, object], param: str
) -> None:
    answer = office.request("POST", path, body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert not [e for e in office.node.events() if isinstance(e, Admin)]


def test_reading_leaves_no_record_and_a_refusal_does(office: Office) -> None:
    assert office.request("GET", "projects").status == 200
    assert not office.node.events()
    answer = office.request("DELETE", "projects")
    assert answer.error["code"] == "method_not_allowed"
    assert office.node.reject(answer.request_id).route == "/v1/organization/projects"
    answer = office.request("GET", "certificates")
    assert answer.error["code"] == "unknown_url"


def test_a_project_of_its_own_is_told_apart(office: Office) -> None:
    node = office.node
    with KeyStore(node.config.layout.keys_db) as keys:
        keys.projects.add(new_project("search"))
        project = keys.projects.get("search").id
        key = new_key("crawler", project=project)
        keys.add(key)
    node.request("POST", CHAT_PATH, ask(), headers={"Authorization": f"Bearer {key.secret}"})
    serve_some(node)
    page = office.client.admin.organization.usage.completions(
        start_time=int(time.time()) - 60, project_ids=[project], group_by=["project_id"]
    )
    (result,) = [result for bucket in page.data for result in bucket.results]
    assert result.object == "organization.usage.completions.result"
    assert (result.project_id, result.num_model_requests) == (project, 1)
