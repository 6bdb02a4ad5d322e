"""/openapi.json and /docs describe the endpoint as it is."""

from __future__ import annotations

import http.client
import itertools
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest

from appliance.shim.operation import Operation
from appliance.shim.operations import ANTHROPIC, OPERATIONS, PUBLIC, route_of
from appliance.shim.wire.parameters import APIS, FORMS
from tests.conftest import REPOSITORY
from tests.fakes.engine import CHAT, EMBEDDING, RERANK
from tests.shim.batch_input import begin, form, jsonl, line, upload
from tests.shim.node import Answer, Node, ask, standing

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": ask(),
    "/v1/responses": {"model": CHAT, "input": "a"},
    "/v1/messages": ask(max_tokens=9),
    "/v1/messages/count_tokens": ask(),
    "/v1/completions": {"model": CHAT, "prompt": "a"},
    "/v1/embeddings": {"model": EMBEDDING, "input": "a"},
    "/v1/rerank": {"model": RERANK, "query": "a", "documents": ["a"], "return_documents": True},
    "/v2/rerank": {"model": RERANK, "query": "a", "documents": ["a", {"text": "b"}]},
    "/v1/score": {"model": RERANK, "text_1": "a", "text_2": "b"},
    "/v1/batches": {
        "input_file_id": "file-0",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "/v1/organization/admin_api_keys": {"name": "robot", "expires_in_seconds": 60},
    "/v1/organization/projects": {"name": "search"},
    "/tokenize": ask(),
    "/detokenize": {"model": CHAT, "tokens": [97]},
}
_numbers = itertools.count()


def each(*operations: Operation) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("operation", operations, ids=lambda o: f"{o.method} {o.path}")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for the whole file: nothing here changes it."""
    with standing(tmp_path_factory.mktemp("node"), store_responses=True, store_files=True) as made:
        yield made


@pytest.fixture(scope="module")
def document(node: Node) -> Any:
    return node.request("GET", "/openapi.json").json


def authorization(node: Node, operation: Operation) -> dict[str, str]:
    """The header with the kind of key that the operation needs."""
    return {"Authorization": f"Bearer {node.office if operation.admin else node.secret}"}


def administered(node: Node, path: str, **body: Any) -> Any:
    """What the administration makes of `body`."""
    headers = {"Authorization": f"Bearer {node.office}"}
    answer = node.request("POST", f"/v1/organization/{path}", body, headers=headers)
    assert answer.status == 200, answer.body
    return answer.json


def concrete(node: Node, operation: Operation) -> str:
    """A path that leads to something, with the query that it needs."""
    path = operation.path.replace("{model}", CHAT)
    if "{response_id}" in path:
        background = path.endswith("/cancel")
        body = {**BODIES["/v1/responses"], "background": background}
        made = node.request("POST", "/v1/responses", body).json
        path = path.replace("{response_id}", made["id"])
    if "{file_id}" in path:
        path = path.replace("{file_id}", upload(node, [line("a")])["id"])
    if "{batch_id}" in path:
        path = path.replace("{batch_id}", begin(node, [line("a" * 500)])["id"])
    if "{key_id}" in path:
        made = administered(node, "admin_api_keys", name="robot")
        path = path.replace("{key_id}", made["id"])
    if "{project_id}" in path:
        made = administered(node, "projects", name=f"project {next(_numbers)}")
        path = path.replace("{project_id}", made["id"])
    timed = operation.admin and path.endswith(("/completions", "/embeddings", "/costs"))
    return f"{path}?start_time=0&group_by[]=project_id" if timed else path


def sent(node: Node, operation: Operation) -> tuple[object, dict[str, str]]:
    """A body that is taken, with its headers."""
    authorized = authorization(node, operation)
    if operation.form is not None:
        body, headers = form(jsonl([line("a")]), purpose="batch")
        return body, {**headers, **authorized}
    given = BODIES.get(operation.path) if operation.method == "POST" else None
    if operation.body is not None and operation.path == "/v1/batches":
        given = {**(given or {}), "input_file_id": upload(node, [line("a")])["id"]}
    return given, authorized


def validate(document: Any, operation: Operation, answer: Answer) -> None:
    """The answer is one that the document declares."""
    described = document["paths"][operation.path][operation.method.lower()]["responses"]
    content = described[str(answer.status)]["content"]
    media_type = answer.headers["content-type"].split(";")[0]
    assert media_type in content
    if media_type == "application/json":
        schema = content[media_type]["schema"]
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(
            answer.json
        )


@each(*OPERATIONS)
def test_each_operation_answers_as_it_is_described(
    node: Node, document: Any, operation: Operation
) -> None:
    path = concrete(node, operation)
    body, headers = sent(node, operation)
    answer = node.request(operation.method, path, body, headers=headers)
    assert answer.status == 200
    validate(document, operation, answer)


@each(*(o for o in OPERATIONS if o.stream is not None))
def test_each_event_of_a_stream_is_as_it_is_described(
    node: Node, document: Any, operation: Operation
) -> None:
    body = {**BODIES[operation.path], "stream": True}
    described = document["paths"][operation.path]["post"]["responses"]["200"]["content"]
    schema = described["text/event-stream"]["x-event-schema"]
    validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
    events = [e for e in node.stream(body, operation.path).documents() if e != "[DONE]"]
    assert events
    for event in events:
        validator.validate(event)


def another_kind(node: Node, operation: Operation) -> str:
    """The secret of a key that is good, and not for this."""
    return node.secret if operation.admin else node.office


@each(*(o for o in OPERATIONS if not o.public))
def test_each_refusal_is_as_it_is_described(
    node: Node, document: Any, operation: Operation
) -> None:
    path = re.sub(r"{\w+}", "nobody", operation.path)
    body = BODIES.get(operation.path) if operation.body is not None else None
    key = authorization(node, operation)

    def answered(path: str, body: object = None, **headers: str) -> Answer:
        return node.request(operation.method, path, body, headers={**key, **headers})

    wrong = [
        answered(path, body, Authorization="no"),
        answered(path, body, Authorization=f"Bearer {another_kind(node, operation)}"),
        answered(path, body, Origin="http://evil.example"),
        answered(path, body, Host="evil.example"),
    ]
    assert [answer.status for answer in wrong] == [401, 403, 403, 421]
    if operation.body is not None:
        statuses = [400, 400, 415]
        bad = [
            answered(path, {**(body or {}), "unheard_of": 1}),
            answered(path, b"{"),
            answered(path, body, **{"Content-Type": "text/plain"}),
        ]
        if not operation.admin:
            name = "input_file_id" if operation.path == "/v1/batches" else "model"
            bad.append(answered(path, {**(body or {}), name: "nobody"}))
            statuses.append(404)
        assert [answer.status for answer in bad] == statuses
        wrong += bad
    if operation.form is not None:
        sent_form, headers = form(b"x", purpose="fine-tune")
        bad = [
            answered(path, sent_form, **headers),
            answered(path, b"x", **headers),
            answered(path, {}),
        ]
        assert [answer.status for answer in bad] == [400, 400, 415]
        wrong += bad
    if operation.names:
        wrong.append(answered(path))
        assert wrong[-1].status == 404
    if operation.query is not None:
        wrong.append(answered(f"{path}?unheard_of=1"))
        assert wrong[-1].status == 400
    for answer in wrong:
        validate(document, operation, answer)
        assert ("request-id" in answer.headers) == (operation.path in ANTHROPIC)
        assert answer.request_id


@each(*OPERATIONS)
def test_a_key_is_needed_exactly_where_the_document_says(
    node: Node, document: Any, operation: Operation
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", node.config.api.listen_port, timeout=120)
    connection.request(operation.method, operation.path.replace("{", "").replace("}", ""))
    status = connection.getresponse().status
    connection.close()
    described = document["paths"][operation.path][operation.method.lower()]
    assert (described["security"] == [{"admin": []}]) == operation.admin
    assert (status == 401) == bool(described["security"]) == (operation.path not in PUBLIC)


def test_every_schema_is_a_schema(document: Any) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    references = set(re.findall(r"'#/components/schemas/([^']+)'", str(document)))
    assert references <= set(document["components"]["schemas"])


def test_every_body_has_a_table_of_parameters(document: Any) -> None:
    with_body = {o.path for o in OPERATIONS if o.body is not None and not o.admin}
    assert with_body == set(APIS)
    assert {operation.path for operation in OPERATIONS if operation.form is not None} == set(FORMS)
    for path in with_body | set(FORMS):
        assert "requestBody" in document["paths"][path]["post"]


def test_every_operation_is_in_the_handbook_of_the_api() -> None:
    page = (REPOSITORY / "docs/api.md").read_text()
    for heading, admin in (("## Endpoints", False), ("## Administration", True)):
        section = page.partition(f"{heading}\n")[2].partition("\n## ")[0]
        listed = set(re.findall(r"^\| `([A-Z]+ [^`]+)` \|", section, flags=re.MULTILINE))
        assert listed == {f"{o.method} {o.path}" for o in OPERATIONS if o.admin is admin}


def test_what_is_mounted_is_described_and_what_is_described_is_mounted(
    node: Node, document: Any
) -> None:
    """Asked of the running endpoint: 405 says which methods a path has, 404 that there is none."""
    described = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    assert described == {(o.method, o.path) for o in OPERATIONS}
    for path in document["paths"]:
        admin = path.startswith("/v1/organization/")
        key = {"Authorization": f"Bearer {node.office if admin else node.secret}"}
        answer = node.request("PATCH", path.replace("{", "").replace("}", ""), headers=key)
        mounted = {method for method in answer.headers["allow"].split(", ") if method != "HEAD"}
        assert {(method, path) for method in mounted} == {(m, p) for m, p in described if p == path}


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/models/a/b", "/v1/models/{model}"),
        ("/v1/responses/x", "/v1/responses/{response_id}"),
        ("/v1/responses/x/cancel", "/v1/responses/{response_id}/cancel"),
        ("/v1/responses/x/y", "unknown"),
        ("/v1/responses/", "unknown"),
        ("/v1/files/x/content", "/v1/files/{file_id}/content"),
        ("/v1/batches/x/cancel", "/v1/batches/{batch_id}/cancel"),
        ("/docs", "/docs"),
        ("/docs/", "unknown"),
        ("/v1/organization/projects/x/archive", "/v1/organization/projects/{project_id}/archive"),
        ("/v1/organization/invites", "/v1/organization/unknown"),
    ],
)
def test_a_route_s_name_has_nothing_of_the_caller_s(path: str, route: str) -> None:
    assert route_of(path) == route


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.links += [str(found[name]) for name in ("href", "src") if name in found]
        self.ids.add(str(found.get("id")))


def test_the_reference_page_needs_nothing_but_itself(node: Node) -> None:
    answer = node.request("GET", "/docs")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page = _Page()
    page.feed(answer.body.decode())
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed"}
    for link in page.links:
        assert link == "/openapi.json" or link.removeprefix("#") in page.ids
    for operation in OPERATIONS:
        for parameter in operation.parameters:
            assert f"<code>{parameter.name}</code>".encode() in answer.body
