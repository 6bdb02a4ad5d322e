"""Claude Code, unmodified, where scripts/fetch-clients has put it: whole tasks, and trouble.

The scripted engine calls the assistant's own tools, which it runs in a folder of the test's.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.audit.event import Reject
from appliance.pb import engine_v1_pb2 as pb
from appliance.tls.files import TlsFiles
from tests.fakes.engine import CHAT, Said
from tests.shim.guide import block
from tests.shim.node import Node, standing
from tests.shim.test_clients import CLIENTS
from tests.shim.test_messages_thinking import PIXEL

PROGRAM = next(
    CLIENTS.glob("claude/node_modules/@anthropic-ai/claude-code-linux-*/claude"), Path("none")
)
CONTEXT = 131_072
"""The assistant sends 75,000 characters before the first word, and here a character is a token."""
PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj "
    b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj "
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
)
LEAST = {
    "ANTHROPIC_MODEL": CHAT,
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
"""What somebody sets who has not read it."""


def documented() -> dict[str, str]:
    """What docs/api.md tells a developer to set."""
    lines = block("Claude Code", "sh")
    found = dict(re.findall(r"^export (\w+)=(\S+)", lines, re.MULTILINE))
    assert len(found) == len(lines.splitlines())
    return {name: CHAT if value == "guide" else value for name, value in found.items()}


OFFLINE = documented()


@dataclass
class Desk:
    """A project's folder, and an endpoint that the assistant is pointed at."""

    node: Node
    project: Path
    trap: socket.socket
    """Where it would go with whatever is not for the endpoint."""

    def run(
        self,
        *more: str,
        key: str = "",
        scripted: tuple[Said, ...] = (),
        environment: Mapping[str, str] = OFFLINE,
    ) -> Any:
        """What the assistant ends with on `scripted` answers."""
        self.node.engine.behaviour.answers.extend(scripted)
        command = [str(PROGRAM), "-p", "do it", "--permission-mode", "acceptEdits", *more]
        return subprocess.run(
            [*command, "--allowedTools", "Bash,Read,Edit,Write"],
            env={
                **environment,
                "PATH": os.environ["PATH"],
                "HOME": str(self.project.parent),
                "ANTHROPIC_BASE_URL": self.address,
                "ANTHROPIC_AUTH_TOKEN": key or self.node.secret,
                "HTTPS_PROXY": f"http://127.0.0.1:{self.trap.getsockname()[1]}",
                "NO_PROXY": "127.0.0.1,localhost",
            },
            cwd=self.project,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @property
    def address(self) -> str:
        """By TLS it has to ask for a host by its name."""
        address = self.node.base_url.removesuffix("/v1")
        return address.replace("https://127.0.0.1", "https://localhost")

    def rejects(self) -> list[str]:
        """The codes of the requests that were refused before they ran."""
        return [event.code for event in self.node.events() if isinstance(event, Reject)]


@contextmanager
def furnished(tmp_path: Path, *, tls: bool = False) -> Iterator[Desk]:
    if not PROGRAM.exists():
        pytest.skip("scripts/fetch-clients puts the coding assistant there, in the full run")
    project = tmp_path / "home/project"
    project.mkdir(parents=True)
    (project / "notes.txt").write_text("one\n")
    with standing(tmp_path / "n", tls=tls) as node, socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        node.engine.behaviour.context = CONTEXT
        yield Desk(node, project, trap)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with furnished(tmp_path) as made:
        yield made


def calls(name: str, **arguments: object) -> Said:
    return [(name, json.dumps(arguments))]


def test_it_comes_by_tls_with_the_nodes_own_authority(tmp_path: Path) -> None:
    with furnished(tmp_path, tls=True) as desk:
        trust = TlsFiles.of(desk.node.config.layout).ca_crt
        environment = {**OFFLINE, "NODE_EXTRA_CA_CERTS": str(trust)}
        done = desk.run(scripted=("all is done",), environment=environment)
        assert (done.returncode, done.stdout.strip()) == (0, "all is done"), done.stderr


@pytest.mark.parametrize(
    ("environment", "refused"),
    [(OFFLINE, set()), (LEAST, {"unsupported_parameter"})],
    ids=["documented", "least"],
)
def test_a_whole_task_is_done(
    desk: Desk, environment: Mapping[str, str], refused: set[str]
) -> None:
    """Without what is documented, it asks for a search of tools first, and then does without."""
    notes = desk.project / "notes.txt"
    done = desk.run(
        "--output-format",
        "json",
        environment=environment,
        scripted=(
            calls("Read", file_path=str(notes)),
            calls("Edit", file_path=str(notes), old_string="one", new_string="two"),
            calls("Bash", command="echo three >> notes.txt", description="Add a line"),
            "all is done",
        ),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["result"], document["num_turns"]) == ("all is done", 4)
    assert notes.read_text() == "two\nthree\n"
    assert set(desk.rejects()) == refused
    with pytest.raises(BlockingIOError):
        desk.trap.accept()


def test_all_of_a_turn_is_found_in_the_prefix_cache_by_the_next(desk: Desk) -> None:
    command = calls("Bash", command="true", description="Do nothing")
    done = desk.run("--output-format", "json", scripted=(command, command, "done"))
    usage = json.loads(done.stdout)["usage"]
    prompts = [call.sequences[0].prompt_tokens for call in desk.node.engine.calls.values()]
    assert usage["cache_read_input_tokens"] + usage["input_tokens"] == sum(prompts)
    assert usage["cache_read_input_tokens"] > 0.99 * sum(prompts[:-1])


def test_two_calls_of_one_turn_are_both_done(desk: Desk) -> None:
    notes = str(desk.project / "notes.txt")
    both = [
        ("Read", json.dumps({"file_path": notes})),
        ("Bash", json.dumps({"command": "cp notes.txt copy.txt", "description": "Copy"})),
    ]
    done = desk.run(scripted=(both, "done"))
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert (desk.project / "copy.txt").read_text() == "one\n"
    request = desk.node.engine.requests[-1]
    assert isinstance(request, pb.GenerateRequest)
    results = [m.tool_call_id for m in request.chat.messages if m.role == "tool"]
    assert results == ["call_0_0", "call_0_1"]


def test_a_conversation_that_is_too_long_is_summed_up(desk: Desk) -> None:
    """The endpoint says how long it is and may be; the assistant asks for a summary and goes on."""
    desk.run("--output-format", "json", scripted=("begun",))
    first = desk.node.engine.last_call().sequences[0].prompt_tokens
    desk.node.engine.behaviour.context = first + 12_000
    count, far = (calls("Bash", command=f"seq 1 {n}", description="Count") for n in (600, 1400))
    summary = "<summary>We counted.</summary>"
    done = desk.run("--continue", scripted=(*[count] * 3, far, summary, "all is counted"))
    assert (done.returncode, done.stdout) == (0, "all is counted\n")
    assert "context_length_exceeded" in desk.rejects()


def test_events_as_they_come_end_the_same(desk: Desk) -> None:
    command = calls("Bash", command="true", description="Do nothing")
    done = desk.run(
        "--output-format",
        "stream-json",
        "--verbose",
        "--include-partial-messages",
        scripted=(command, "done"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["result"] == "done"
    assert desk.rejects() == []


@pytest.mark.parametrize("name", ["a.png", "a.pdf"])
def test_what_the_model_cannot_read_ends_no_task(desk: Desk, name: str) -> None:
    given = {"a.png": base64.b64decode(PIXEL), "a.pdf": PDF}
    (desk.project / name).write_bytes(given[name])
    read = calls("Read", file_path=str(desk.project / name))
    done = desk.run(scripted=(read, "never mind"))
    assert (done.returncode, done.stdout) == (0, "never mind\n")


def test_a_wrong_key_is_said_at_once(desk: Desk) -> None:
    done = desk.run(key="sk-wrong")
    assert done.returncode == 1
    assert "the API key is mistyped, expired or revoked" in done.stdout
    assert desk.rejects() == ["invalid_api_key"]
