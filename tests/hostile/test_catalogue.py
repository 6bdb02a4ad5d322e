"""The hostile catalogue: whatever is sent, one oracle holds (docs/decisions/0208)."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import pytest

from tests.conftest import BuildOnce
from tests.hostile import (
    bundle_cases,
    disk_cases,
    grpc_cases,
    http_cases,
    key_cases,
    parameter_cases,
)
from tests.hostile.oracle import Case, faults_of, send
from tests.hostile.stack import Probe, Stack, build_models, standing

QUIET_SECONDS = 10
ROUNDS = 5
GROUPS: dict[str, list[Case]] = {
    "HTTP": http_cases.CASES,
    "keys": key_cases.CASES,
    "parameters": parameter_cases.CASES,
}


@pytest.fixture(scope="module")
def stack(build_once: BuildOnce) -> Iterator[Stack]:
    """One running pair for the whole catalogue, warm."""
    with standing(build_once("hostile-models", build_models)) as made:
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


def test_bundles_are_refused_and_nobody_notices(stack: Stack, tmp_path: Path) -> None:
    signer = bundle_cases.a_signer(tmp_path)
    with watched(stack) as faults:
        for case in bundle_cases.CASES:
            bundle = bundle_cases.prepared(tmp_path / "made", case, signer)
            found = bundle_cases.faults_of(stack, case, bundle, signer)
            faults += [f"{case.name}: {fault}" for fault in found]


def test_a_damaged_disk_is_noticed_and_nobody_else_notices(stack: Stack, tmp_path: Path) -> None:
    disk = disk_cases
    with watched(stack) as faults:
        files = disk.artifact_files(stack)
        assert len(files) >= 3, "record, graph and weights at least"
        for path, (name, damage) in product(files, disk.DAMAGES.items()):
            found = disk.faults_of_load(stack, path, damage)
            faults += [f"{path.name}, {name}: {fault}" for fault in found]
        assert disk.load(stack)[0] is grpc.StatusCode.OK, "and it is loaded when it is whole"
        for name, text in disk.SETTINGS.items():
            faults += [f"settings, {name}: {fault}" for fault in disk.faults_of_settings(text)]
        for file, name in product(disk.LOG_FILES, disk.LOG_DAMAGES):
            found = disk.faults_of_log(stack, tmp_path, file, disk.DAMAGES[name])
            faults += [f"{file}, {name}: {fault}" for fault in found]
        for file, name in product(("keys_db", "usage_db"), disk.DATABASE_DAMAGES):
            found = disk.faults_of_database(stack, tmp_path, file, disk.DAMAGES[name])
            faults += [f"{file}, {name}: {fault}" for fault in found]


def test_the_catalogue_has_no_case_twice() -> None:
    groups = [[case.name for case in cases] for cases in GROUPS.values()]
    groups += [[call.name for call in grpc_cases.CASES]]
    groups += [[bundle.name for bundle in bundle_cases.CASES]]
    for names in groups:
        assert len(names) == len(set(names))
    assert sum(map(len, groups)) >= 150


@pytest.mark.slow
def test_what_the_caller_beside_it_waits_is_measured(
    stack: Stack, record_property: Callable[[str, object], None]
) -> None:
    with in_another_process(stack.probe()) as alone:
        time.sleep(QUIET_SECONDS)
    stack.billed += alone.tokens
    for group, cases in GROUPS.items():
        with in_another_process(stack.probe()) as beside:
            for case in cases * ROUNDS:
                assert not faults_of(case, send(stack, case)), case.name
        stack.billed += beside.tokens
        assert beside.failures == []
        factor = beside.median() / alone.median()
        record_property("measured", f"hostile {group}: the caller beside it waits {factor:.2f}x")
    assert not stack.faults(stack.figures())


@contextmanager
def in_another_process(probe: Probe) -> Iterator[Probe]:
    """It asks meanwhile, and knows at the end what it met; others' requests cost it nothing."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_probing, args=(probe, there))
    process.start()
    try:
        yield probe
    finally:
        here.send(None)
        probe.latencies, probe.failures, probe.tokens = here.recv()
        process.join()


def _probing(probe: Probe, pipe: Connection) -> None:
    while not pipe.poll(probe.pace):
        probe.once()
    pipe.send((probe.latencies, probe.failures, probe.tokens))


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
