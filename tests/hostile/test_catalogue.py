"""The hostile catalogue: whatever is sent, one oracle holds (docs/decisions/0208)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.conftest import BuildOnce
from tests.hostile import grpc_cases, http_cases, key_cases, parameter_cases
from tests.hostile.oracle import Case, faults_of, send
from tests.hostile.stack import Stack, build_models, standing

GROUPS: dict[str, Sequence[Case]] = {
    "HTTP": http_cases.CASES,
    "keys": key_cases.CASES,
    "parameters": parameter_cases.CASES,
}


@pytest.fixture(scope="module")
def stack(build_once: BuildOnce) -> Iterator[Stack]:
    """One running pair for the whole catalogue, warm."""
    with standing(build_once("shim-models", build_models)) as made:
        made.warm()
        yield made


@pytest.mark.parametrize("group", GROUPS)
def test_requests_are_refused_and_nobody_notices(stack: Stack, group: str) -> None:
    with watched(stack) as faults:
        for case in GROUPS[group]:
            faults += [f"{case.name}: {fault}" for fault in faults_of(case, send(stack, case))]


def test_calls_of_the_engine_are_refused_and_nobody_notices(stack: Stack) -> None:
    with watched(stack) as faults:
        for call in grpc_cases.CASES:
            faults += [f"{call.name}: {fault}" for fault in grpc_cases.faults_of(stack, call)]


@contextmanager
def watched(stack: Stack) -> Iterator[list[str]]:
    """A list of faults; at the end, beside what was put into it, what else does not hold."""
    faults: list[str] = []
    before = stack.figures()
    with stack.probe() as probe:
        yield faults
    stack.billed += probe.tokens
    assert probe.latencies, "somebody was beside it"
    faults += [f"the caller beside it: {failure}" for failure in probe.failures]
    faults += stack.faults(before)
    assert not faults, "\n".join(faults)
