"""Coding assistants, unmodified and configured as docs/api.md says, at work on a folder.

The engine's answers are scripted: a tool is called, the assistant runs it and sends the result,
and ends with the model's text.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.pb import engine_v1_pb2 as pb
from tests.conftest import REPOSITORY
from tests.fakes.engine import CHAT
from tests.shim.guide import block
from tests.shim.node import Node, standing
from tests.shim.test_clients import CLIENTS

NOTES = REPOSITORY / "tests/shim/clients/notes_server.py"
ADDRESS = "http://127.0.0.1:8400/v1"
CONTEXT = 200_000
PATCH = "*** Begin Patch\n*** Update File: a.txt\n@@\n-one\n+two\n*** End Patch\n"
SHELL = json.dumps({"cmd": "cat a.txt > b.txt"})
BASH = json.dumps({"command": "cat a.txt > b.txt", "description": "Copies a file"})


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node whose model holds the prompts of assistants."""
    with standing(tmp_path / "node") as made:
        made.engine.behaviour.context = CONTEXT
        made.engine.behaviour.together = 512
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The developer's home, with the folder `work` in it."""
    (tmp_path / "home/work").mkdir(parents=True)
    (tmp_path / "home/work/a.txt").write_text("one\n")
    return tmp_path / "home"


def documented(node: Node, title: str, language: str) -> str:
    """The first block of `language` below `title` in the guide, for this node and its model."""
    return block(title, language).replace(ADDRESS, node.base_url).replace("guide", CHAT)


def at_work(node: Node, home: Path, *command: object, **more: str) -> tuple[int, str]:
    """Exit status and output of `command` in the developer's folder."""
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "APPLIANCE_API_KEY": node.secret}
    done = subprocess.run(
        list(map(str, command)),
        cwd=home / "work",
        env={**environment, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.decode()


def program(name: str, pattern: str) -> Path:
    found = sorted((CLIENTS / name).glob(pattern))
    if not found:
        pytest.skip("scripts/fetch-clients puts it there, in the full run")
    return found[0]


def codex(node: Node, home: Path, *asked: object, more: str = "") -> tuple[int, str]:
    """`codex exec`, told of the node as the guide says."""
    binary = program("codex", "node_modules/@openai/codex-linux-*/vendor/*/bin/codex")
    folder = home / ".codex"
    folder.mkdir(exist_ok=True)
    (folder / "models.json").write_text(documented(node, "Codex", "json"))
    settings = documented(node, "Codex", "toml").replace("/home/me", str(home))
    (folder / "config.toml").write_text(settings + more)
    free = "--dangerously-bypass-approvals-and-sandbox"
    return at_work(node, home, binary, "exec", "--skip-git-repo-check", free, "--json", *asked)


def prompts(node: Node) -> list[pb.GenerateRequest]:
    return [r for r in node.engine.requests if isinstance(r, pb.GenerateRequest)]


def usages(node: Node) -> list[pb.Usage]:
    return [call.sequences[0] for call in node.engine.calls.values()]


def test_codex_works_on_a_task_with_its_shell(node: Node, home: Path) -> None:
    node.engine.behaviour.answers.extend([[("exec_command", SHELL)], "It is copied."])
    status, output = codex(node, home, "copy the file")
    assert status == 0, output
    assert (home / "work/b.txt").read_text() == "one\n"
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert lines[-2]["item"]["text"] == "It is copied."
    assert not [line for line in lines if line.get("item", {}).get("type") == "error"]
    first, second = usages(node)
    assert second.cached_tokens > 0.95 * first.prompt_tokens


def test_codex_changes_files_by_patches(node: Node, home: Path) -> None:
    call = ("apply_patch", json.dumps({"input": PATCH}))
    node.engine.behaviour.answers.extend([[call], "It is changed."])
    status, output = codex(node, home, "change the file")
    assert status == 0, output
    assert (home / "work/a.txt").read_text() == "two\n"
    (tool,) = [t for t in prompts(node)[0].chat.tools if t.name == "apply_patch"]
    assert tool.strict
    assert "pattern" in json.loads(tool.parameters_json)["properties"]["input"]


def test_codex_calls_the_tools_of_a_server(node: Node, home: Path) -> None:
    call = ("mcp__notes__look", '{"at": "b"}')
    node.engine.behaviour.answers.extend([[call], "It is there."])
    server = {"command": sys.executable, "required": True, "args": [str(NOTES)]}
    lines = [f"{name} = {json.dumps(value)}" for name, value in server.items()]
    more = "\n".join(["\n[mcp_servers.notes]", *lines, ""])
    status, output = codex(node, home, "look it up", more=more)
    assert status == 0, output
    *_, turn, result = prompts(node)[1].chat.messages
    assert turn.tool_calls[0].name == "mcp__notes__look"
    assert "the note at b" in [part.text for part in result.content]


def test_codex_sends_reasoning_back_and_goes_on_with_a_session(node: Node, home: Path) -> None:
    node.engine.behaviour.answers.extend([[("exec_command", SHELL)], "First.", "Second."])
    effort = ("-c", 'model_reasoning_effort="high"')
    assert codex(node, home, *effort, "copy the file")[0] == 0
    status, output = codex(node, home, "resume", "--last", *effort, "and again")
    assert status == 0, output
    assert "Second." in output
    said = [m for m in prompts(node)[-1].chat.messages if m.role == "assistant"]
    assert [m.reasoning for m in said] == ["hm", "hm"]


def test_codex_is_told_why_there_is_no_search(node: Node, home: Path) -> None:
    status, output = codex(node, home, "-c", 'web_search="live"', "search")
    assert status == 1
    assert "the appliance has no network" in output


def opencode(node: Node, home: Path, **model: Any) -> tuple[int, str]:
    """`opencode run`, told of the node as the guide says; `model` is said of the model besides."""
    binary = program("opencode", "node_modules/opencode-linux-*/bin/opencode")
    settings = json.loads(documented(node, "opencode", "json"))
    settings["provider"]["appliance"]["models"][CHAT] |= model
    (home / "work/opencode.json").write_text(json.dumps(settings))
    quiet = {"OPENCODE_DISABLE_MODELS_FETCH": "1"}
    return at_work(node, home, binary, "run", "--auto", "copy the file", **quiet)


def test_opencode_works_on_a_task(node: Node, home: Path) -> None:
    """It asks for a title first, and beside it for the work."""
    node.engine.behaviour.answers.extend(["A title", [("bash", BASH)], "It is copied."])
    status, output = opencode(
        node, home, reasoning=True, interleaved={"field": "reasoning_content"}
    )
    assert status == 0, output
    assert "It is copied." in output
    assert (home / "work/b.txt").read_text() == "one\n"
    *_, turn, result = prompts(node)[-1].chat.messages
    assert (turn.role, turn.tool_calls[0].name, result.role) == ("assistant", "bash", "tool")
