"""Clients that applications use, unmodified, where scripts/fetch-clients has put them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.fakes.engine import CHAT, DIMENSIONS, EMBEDDING, RERANK, Said
from tests.shim.node import Node, standing

CLIENTS = REPOSITORY / ".build/clients"
SCRIPTS = REPOSITORY / "tests/shim/clients"
HELLO = len("hello") + 1


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with standing(tmp_path, store_files=True) as made:
        yield made


def found(node: Node, *command: object, **environment: str) -> Any:
    """The JSON document that `command` prints."""
    done = subprocess.run(
        list(map(str, command)),
        env={
            "PATH": os.environ["PATH"],
            "OPENAI_BASE_URL": node.base_url,
            "OPENAI_API_KEY": node.secret,
            **environment,
        },
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def node_of(where: Path) -> str | None:
    """The Node that came with an SDK, or the machine's."""
    own = next(where.glob("node_modules/node-linux-*/bin/node"), None)
    return str(own) if own is not None else shutil.which("node")


@pytest.mark.parametrize("name", ["node", "newest"])
def test_the_node_sdk_finds_everything_where_it_looks_for_it(node: Node, name: str) -> None:
    sdk = CLIENTS / name / "node_modules/openai/index.mjs"
    command = node_of(CLIENTS / name)
    if not sdk.exists() or command is None:
        pytest.skip("scripts/fetch-clients puts the Node SDK there, the newest in the full run")
    got = found(node, command, SCRIPTS / "sdk.mjs", sdk)
    assert got["chat"] == got["stream"] == got["helper"] == got["response"] == "hello"
    assert got["usage"]["completion_tokens"] == HELLO
    assert got["streamUsage"]["completion_tokens"] == HELLO
    assert got["call"] == {"name": "look", "arguments": '{"at": "b"}'}
    assert got["form"] == {"word": "a"}
    assert got["events"][0] == "response.created"
    assert got["events"][-1] == "response.completed"
    assert got["embeddings"] == [DIMENSIONS, DIMENSIONS]
    assert got["models"] == sorted([CHAT, EMBEDDING, RERANK])
    assert got["error"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found"}
    assert got["batch"] == {
        "status": "completed",
        "counts": {"total": 2, "completed": 2, "failed": 0},
    }
    assert got["results"] == [["a", "a"], ["b", "b"]]
    assert got["files"] == ["batch_output", "batch"]
    assert got["deleted"]


def over_the_sdk(node: Node, script: str) -> Any:
    if not (CLIENTS / "python/openai").exists():
        pytest.skip("scripts/fetch-clients puts these libraries there")
    return found(node, sys.executable, SCRIPTS / script, PYTHONPATH=str(CLIENTS / "python"))


def in_the_full_run(node: Node, script: str) -> Any:
    if not (CLIENTS / "frameworks/agents").exists():
        pytest.skip("scripts/fetch-clients puts these libraries there, in the full run")
    where = {"PYTHONPATH": str(CLIENTS / "frameworks"), "HOME": str(node.config.layout.root)}
    return found(node, sys.executable, SCRIPTS / script, **where)


TASK: list[Said] = [[("look", '{"at": "b"}')], "It is b."]
"""A call, and what is said of its result."""
FORM: Said = '{"word": "a"}'


def test_the_ai_sdk_works_on_tasks_by_chat_and_by_responses(node: Node) -> None:
    where = CLIENTS / "ai"
    command = node_of(where)
    if not (where / "node_modules/ai").exists() or command is None:
        pytest.skip("scripts/fetch-clients puts the AI SDK there, in the full run")
    said: list[Said] = [*TASK, "hello", FORM]
    node.engine.behaviour.answers.extend([*said, *said, [("write", '{"input": "a\\nb"}')]])
    got = found(node, command, SCRIPTS / "ai.mjs", where)
    tokens = len("hm") + HELLO
    both = {
        "task": "It is b.",
        "steps": ["tool-calls", "stop"],
        "results": ["the note at b"],
        "stream": "hello",
        "usage": tokens,
        "object": {"word": "a"},
    }
    assert got["chat"] == {**both, "reasoning": "hm"}
    assert got["responses"] == both
    assert got["custom"] == ["a\nb"]
    assert got["embeddings"] == [DIMENSIONS, DIMENSIONS]


def test_openai_agents_works_on_tasks_by_chat_and_by_responses(node: Node) -> None:
    node.engine.behaviour.answers.extend([*TASK, *TASK, FORM] * 2)
    got = in_the_full_run(node, "with_openai_agents.py")
    assert got["chat"] == got["responses"]
    assert got["chat"]["task"] == got["chat"]["stream"][-1] == "It is b."
    assert got["chat"]["form"] == "a"
    assert "tool_call_output_item" in got["chat"]["items"]


def test_llama_index_chats_calls_and_embeds(node: Node) -> None:
    assert in_the_full_run(node, "with_llama_index.py") == {
        "chat": "hello",
        "stream": "hello",
        "complete": "hello",
        "call": "the note at b",
        "form": "a",
        "embeddings": [DIMENSIONS, DIMENSIONS],
    }


def test_langchain_chats_streams_calls_and_embeds(node: Node) -> None:
    assert over_the_sdk(node, "with_langchain.py") == {
        "chat": "hello",
        "usage": HELLO,
        "stream": "hello",
        "call": [["look", {"at": "b"}]],
        "form": {"word": "a"},
        "embeddings": [DIMENSIONS, DIMENSIONS],
    }


def test_pydantic_ai_talks_to_chat_and_to_responses(node: Node) -> None:
    assert over_the_sdk(node, "with_pydantic_ai.py") == {
        "chat": "hello",
        "chat form": {"word": "a"},
        "responses": "hello",
        "responses form": {"word": "a"},
    }


def test_instructor_gets_its_types_as_forms_and_as_calls(node: Node) -> None:
    assert over_the_sdk(node, "with_instructor.py") == {
        "JSON_SCHEMA": {"word": "a"},
        "TOOLS": {"word": "a"},
    }
