"""Killed at any point, a batch ends with exactly one billed result for each line."""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from appliance.audit.event import Request, Response
from appliance.config import Config
from installer.readiness import ReadinessSocket
from tests.conftest import REPOSITORY
from tests.fakes.dying_shim import POINTS
from tests.fakes.engine import FakeEngine
from tests.shim.batch_input import begin, content, ended, line
from tests.shim.node import PATIENCE, Node, prepare, running_shim
from tests.sweeps import rarely

NAMES = [f"line-{n}" for n in range(6)]
FAST = [
    ("after a result was kept", 1),
    ("before a record", 8),
    ("after a record", 9),
    ("after an error was kept", 1),
    ("before the batch ends", 1),
    ("after the batch ended", 1),
]
ALL = [(point, number) for point in POINTS for number in range(1, 13)]


def write_settings(config: Config) -> None:
    path = config.layout.config_file
    path.parent.mkdir(parents=True)
    port = config.api.listen_port
    path.write_text(f"[api]\nlisten_port = {port}\nstore_files = true\n")


@pytest.mark.parametrize(("point", "number"), [*FAST, *rarely(ALL)])
def test_a_kill_costs_no_result_and_bills_none_twice(
    tmp_path: Path, point: str, number: int
) -> None:
    config = prepare(tmp_path, store_files=True)
    write_settings(config)
    readiness = ReadinessSocket()
    with FakeEngine(config.layout.engine_socket) as engine:
        node = Node(config, engine)
        shim = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.dying_shim", tmp_path, point, str(number)],
            env=readiness.environment,
            cwd=REPOSITORY,
        )
        try:
            assert readiness.wait(PATIENCE, until=lambda: shim.poll() is not None)
            batch_id = order(node)
            killed = died(shim, PATIENCE if number == 1 else 5)
        finally:
            shim.kill()
            shim.wait()
            readiness.close()
        with running_shim(config):
            if batch_id:
                check(node, batch_id)
        assert killed or number > 1, "each point is passed at least once"


def order(node: Node) -> str:
    """The batch, with a line that is refused; empty if the shim died before it said so."""
    wrong = line("wrong")
    wrong["body"]["temperature"] = 9
    try:
        batch_id: str = begin(node, [*map(line, NAMES), wrong])["id"]
    except (OSError, http.client.HTTPException):
        return ""
    return batch_id


def died(shim: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it killed itself in time; a point that is not passed so often leaves it alive."""
    try:
        return shim.wait(seconds) == -9
    except subprocess.TimeoutExpired:
        return False


def check(node: Node, batch_id: str) -> None:
    """Every line has one outcome, and one bill if it has a result."""
    batch = ended(node, batch_id)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 7, "completed": 6, "failed": 1}
    output = content(node, batch["output_file_id"])
    assert set(output) == set(NAMES)
    assert set(content(node, batch["error_file_id"])) == {"wrong"}
    events = node.events()
    billed = [e for e in events if isinstance(e, Response) and e.batch and e.outcome == "ok"]
    assert {e.request_id for e in billed} == {o["response"]["request_id"] for o in output.values()}
    assert len(billed) == len(NAMES)
    assert batch["usage"]["total_tokens"] == sum(
        e.tokens.prompt + e.tokens.generated for e in billed
    )
    begun = Counter(e.request_id for e in events if isinstance(e, Request))
    closed = Counter(e.request_id for e in events if isinstance(e, Response))
    assert begun == closed
    assert set(begun.values()) == {1}
    others = [e for e in events if isinstance(e, Response) and e.model and e not in billed]
    assert all(e.cost == 0 and not e.tokens.generated for e in others)
