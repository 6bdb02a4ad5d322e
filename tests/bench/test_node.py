"""`appliance bench` on a node: the real endpoint before a fake engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from appliance.access import KeyStore
from appliance.config import Layout
from appliance.errors import NotFoundError, UsageError
from installer.bench.history import keep
from installer.cli.app import app
from installer.cli.bench import INTERRUPTED, KEY_NAME
from tests.bench.example import example_report
from tests.fakes.engine import CHAT, CONTEXT, DIGEST, FakeEngine
from tests.shim.node import Node, eventually, standing

SHAPE = ("--input-tokens", "64", "--output-tokens", "8", "--requests", "4")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.delenv("APPLIANCE_API_KEY", raising=False)
    with standing(tmp_path) as made:
        file = made.config.layout.config_file
        file.parent.mkdir(parents=True)
        file.write_text(f"[api]\nlisten_port = {made.config.api.listen_port}\n")
        yield made


def bench(node: Node, *arguments: str) -> Result:
    root = str(node.config.layout.root)
    return CliRunner().invoke(app, ["bench", "--root", root, *SHAPE, *arguments])


def measured(node: Node, *arguments: str) -> Any:
    result = bench(node, "--json", *arguments)
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)


def test_a_node_is_measured_exactly_as_it_was_asked(node: Node) -> None:
    document = measured(node, "--concurrency", "1,4")
    assert document["target"]["model"] == CHAT
    assert document["target"]["bundle_digest"] == DIGEST[CHAT]
    assert document["target"]["fingerprint"] == f"fp_{DIGEST[CHAT][:16]}"
    assert document["target"]["own_node"]
    assert document["target"]["dialect"]["ignore_eos"]
    for level, streams in zip(document["levels"], (1, 4), strict=True):
        assert level["level"]["concurrency"] == level["peak"] == streams
        assert (level["requests"], level["failed"], level["silent"]) == (4, 0, 0)
        assert level["prompt_tokens"] == {"low": 64, "high": 64, "total": 256}
        assert level["completion_tokens"] == {"low": 8, "high": 8, "total": 32}
        assert level["gap"]["count"] == 4 * 7
    assert document["notes"] == []


def test_a_prefix_cache_cannot_help_unless_it_is_asked_to(node: Node) -> None:
    (plain,) = measured(node, "--concurrency", "1")["levels"]
    (shared,) = measured(node, "--concurrency", "1", "--shared-prefix", "40")["levels"]
    assert plain["cached_tokens"] < 4 * 20
    assert shared["cached_tokens"] >= 4 * 36


def test_the_key_is_made_for_the_run_and_revoked(node: Node) -> None:
    bench(node, "--concurrency", "1")
    with KeyStore(node.config.layout.keys_db) as keys:
        (made,) = [key for key in keys.list() if key.name == KEY_NAME]
        assert made.revoked is not None


def test_a_key_of_ones_own_is_used_instead(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_API_KEY", node.secret)
    bench(node, "--concurrency", "1")
    with KeyStore(node.config.layout.keys_db) as keys:
        assert [key.name for key in keys.list()] == ["test"]


def test_reports_are_kept_and_can_be_compared_with(node: Node) -> None:
    measured(node, "--concurrency", "1")
    (kept,) = node.config.layout.bench.iterdir()
    assert kept.name.endswith(f"-{CHAT}.json")
    document = measured(node, "--concurrency", "1,2", "--compare", str(kept))
    (ratios,) = document["comparison"]["levels"]
    assert ratios["load"] == "1"
    assert ratios["output_tokens_per_second"] > 0
    assert document["comparison"]["differences"] == []
    printed = bench(node, "--concurrency", "1", "--compare", str(kept)).stdout
    assert "now / before" in printed


def test_the_document_on_standard_output_can_be_compared_with(node: Node, tmp_path: Path) -> None:
    before = tmp_path / "before.json"
    before.write_text(bench(node, "--json", "--concurrency", "1").stdout)
    assert "comparison" in measured(node, "--concurrency", "1", "--compare", str(before))


def test_without_a_node_nothing_is_kept_or_made(tmp_path: Path) -> None:
    assert keep(Layout(tmp_path / "absent"), example_report()) is None
    assert not (tmp_path / "absent").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_the_command_may_not_write_nothing_is_kept(node: Node) -> None:
    node.config.layout.state.chmod(0o555)
    try:
        assert measured(node, "--concurrency", "1")["levels"]
        assert not node.config.layout.bench.exists()
    finally:
        node.config.layout.state.chmod(0o755)


def test_the_page_is_written(node: Node, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    result = bench(node, "--concurrency", "1,2", "--html", str(target))
    assert f"wrote {target}" in result.stderr
    ElementTree.fromstring(target.read_text().removeprefix("<!DOCTYPE html>\n"))


def test_a_page_that_has_nowhere_to_go_is_refused_at_once(node: Node, tmp_path: Path) -> None:
    result = bench(node, "--html", str(tmp_path / "absent/page.html"))
    assert isinstance(result.exception, NotFoundError)
    assert not node.engine.requests


def test_a_shape_beyond_the_context_is_refused(node: Node) -> None:
    result = bench(node, "--concurrency", "1", "--output-tokens", str(CONTEXT))
    assert isinstance(result.exception, UsageError)
    assert str(CONTEXT) in result.exception.message


def test_no_node_is_not_found(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "--root", str(tmp_path)])
    assert isinstance(result.exception, NotFoundError)


class StoppingLevel(list[Any]):
    """Requests to `engine`, which says nothing more from the tenth of the level with load 3 on."""

    def __init__(self, engine: FakeEngine, said: Path) -> None:
        super().__init__()
        self._engine, self._said, self._left = engine, said, 10

    def append(self, request: Any) -> None:
        if "load 3" in self._said.read_text():
            self._left -= 1
        if self._left <= 0:
            self._engine.behaviour.pause_after = 0
        super().append(request)


def test_ctrl_c_prints_what_was_measured_until_then(node: Node, tmp_path: Path) -> None:
    """The engine stops in the middle of the second level, and then comes the signal."""
    node.engine.requests = StoppingLevel(node.engine, tmp_path / "err")
    shape = ["--input-tokens", "64", "--output-tokens", "8", "--requests", "60"]
    arguments = ["bench", "--root", str(node.config.layout.root), *shape]
    code = "from installer.cli import main; main()"
    with (tmp_path / "err").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments, "--concurrency", "8,3", "--json"],
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    stopped = node.engine.behaviour
    eventually(
        lambda: (
            (stopped.pause_after == 0 and node.engine.running == 3) or process.poll() is not None
        ),
        300,
    )
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == INTERRUPTED
    document = json.loads(output)
    assert document["interrupted"]
    assert document["levels"][0]["requests"] == 60
    assert 0 < document["levels"][1]["requests"] < 60
    with KeyStore(node.config.layout.keys_db) as keys:
        (made,) = [key for key in keys.list() if key.name == KEY_NAME]
        assert made.revoked is not None


def test_ctrl_c_before_the_first_level_ends_at_once(node: Node) -> None:
    node.engine.behaviour.pause_after = 0
    code = "from installer.cli import main; main()"
    root = str(node.config.layout.root)
    process = subprocess.Popen(
        [sys.executable, "-c", code, "bench", "--root", root, *SHAPE, "--concurrency", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    eventually(lambda: node.engine.running > 0 or process.poll() is not None, 300)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == INTERRUPTED
    assert output == b""
