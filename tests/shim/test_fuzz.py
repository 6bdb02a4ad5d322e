"""Whatever fits /openapi.json, and much that does not, gets an answer that it declares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from appliance.shim.openapi import document
from appliance.shim.operations import OPERATIONS, Operation
from tests.fakes.engine import CHAT, EMBEDDING, RERANK
from tests.shim.batch_input import line, upload
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


@pytest.mark.parametrize(
    ("operation", "mode", "examples"), [*cases(5), *cases(200, pytest.mark.slow)]
)
def test_each_operation_gives_only_answers_that_it_declares(
    node: Node, operation: Operation, mode: Any, examples: int
) -> None:
    known: Any = SCHEMA[operation.path][operation.method]
    input_file = upload(node, [line("a")])["id"]

    @given(case=known.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        _tame(case.body, operation, input_file)
        response = case.call(
            base_url=node.base_url.removesuffix("/v1"),
            headers={"Authorization": f"Bearer {node.secret}"},
        )
        case.validate_response(response, checks=CHECKS)

    check()


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
