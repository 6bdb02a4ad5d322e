"""Whatever fits /openapi.json, and much that does not, gets an answer that it declares."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.errors import InvalidSchema
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from appliance.shim.openapi import document
from appliance.shim.operation import Operation
from appliance.shim.operations import OPERATIONS
from tests.fakes.engine import CHAT, EMBEDDING, RERANK
from tests.shim.batch_input import begin, line, upload
from tests.shim.node import Node, standing

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
_MODELS = {"/v1/embeddings": EMBEDDING} | dict.fromkeys(
    ("/v1/rerank", "/v2/rerank", "/v1/score"), RERANK
)
SCHEMA: Any = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for the whole file."""
    with standing(tmp_path_factory.mktemp("node"), store_responses=True, store_files=True) as made:
        yield made


def cases(examples: int, *marks: Any) -> list[Any]:
    """Requests that fit each operation, and where a request can be wrong, some that do not."""
    return [
        pytest.param(operation, mode, examples, marks=marks, id=f"{mode.value} {name}, {examples}")
        for operation in OPERATIONS
        for name in [f"{operation.method} {operation.path}"]
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or operation.body or operation.form or operation.query
    ]


@st.composite
def drawable(draw: st.DrawFn, requests: st.SearchStrategy[Any]) -> Any:
    """What the library draws of `requests`; a schema that it altered into none cannot be drawn."""
    try:
        return draw(requests)
    except InvalidSchema:
        reject()


@pytest.mark.parametrize(
    ("operation", "mode", "examples"), [*cases(5), *cases(200, pytest.mark.slow)]
)
def test_each_operation_gives_only_answers_that_it_declares(
    node: Node, operation: Operation, mode: Any, examples: int
) -> None:
    known: Any = SCHEMA[operation.path][operation.method]
    input_file = upload(node, [line("a")])["id"]
    there = Things(node, input_file)

    @given(case=drawable(known.as_strategy(generation_mode=mode)))
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        _tame(case.body, operation, input_file)
        for name, value in (case.path_parameters or {}).items():
            # Half of the names lead to something.
            if len(str(value)) % 2:
                case.path_parameters[name] = there.find(name, operation)
        response = case.call(
            base_url=node.base_url.removesuffix("/v1"),
            headers={"Authorization": f"Bearer {node.office if operation.admin else node.secret}"},
        )
        case.validate_response(response, checks=CHECKS)

    check()


class Things:
    """What the variable parts of paths may name; a fresh one where the operation ends it."""

    def __init__(self, node: Node, input_file: str) -> None:
        self._node = node
        self._input_file = input_file
        self._kept: dict[str, str] = {}

    def find(self, name: str, operation: Operation) -> str:
        ends = operation.method == "DELETE" or operation.path.endswith("/archive")
        if ends or name not in self._kept:
            self._kept[name] = self._make(name)
        return self._kept[name]

    def _make(self, name: str) -> str:
        match name:
            case "model":
                return CHAT
            case "file_id":
                return str(upload(self._node, [line("a")])["id"])
            case "batch_id":
                return str(begin(self._node, [line("a")])["id"])
            case "response_id":
                return self._made("/v1/responses", {"model": CHAT, "input": "a"})
            case "key_id":
                return self._made("/v1/organization/admin_api_keys", {"name": "robot"})
            case _:
                body = {"name": secrets.token_hex(8)}
                return self._made("/v1/organization/projects", body)

    def _made(self, path: str, body: dict[str, str]) -> str:
        secret = self._node.office if "organization" in path else self._node.secret
        headers = {"Authorization": f"Bearer {secret}"}
        answer = self._node.request("POST", path, body, headers=headers)
        assert answer.status == 200, answer.body
        return str(answer.json["id"])


def _tame(body: Any, operation: Operation, input_file: str) -> None:
    """Ask for a model and a file that are there, and not for more than a test has time for."""
    if not isinstance(body, dict):
        return
    if isinstance(body.get("input_file_id"), str) and body["input_file_id"] != "0":
        body["input_file_id"] = input_file
    if isinstance(body.get("model"), str) and body["model"] != "0":
        body["model"] = _MODELS.get(operation.path, CHAT)
    if isinstance(body.get("n"), int) and body["n"] > 2:
        body["n"] = 2
    if body.get("ignore_eos"):
        body["max_tokens"] = 5
