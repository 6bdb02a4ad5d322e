"""`audit.content` end to end: content is committed to or sealed, and never there in clear."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from typer.testing import CliRunner

from appliance.audit.content import committed
from appliance.audit.event import Request, Response
from appliance.config import AuditSettings, Layout, parse_config
from installer.cli.app import app
from tests.fakes.engine import EMBEDDING, FakeEngine
from tests.shim.node import Node, ask, prepare, running_shim

CANARY = "the canary sings at noon"


@contextmanager
def running(root: Path, settings: AuditSettings) -> Iterator[Node]:
    config = dataclasses.replace(prepare(root), audit=settings)
    with FakeEngine(config.layout.engine_socket) as engine, running_shim(config):
        yield Node(config, engine)


def exchanged(node: Node) -> list[tuple[Request, Response]]:
    events = node.events()
    requests = [e for e in events if isinstance(e, Request)]
    responses = {e.request_id: e for e in events if isinstance(e, Response)}
    return [(request, responses[request.request_id]) for request in requests]


def talk(node: Node) -> list[bytes]:
    """A whole answer, a streamed one and an embedding; the bodies that were sent."""
    bodies = [
        ask(CANARY),
        ask(CANARY, stream=True),
        {"model": EMBEDDING, "input": CANARY},
    ]
    paths = ["/v1/chat/completions", "/v1/chat/completions", "/v1/embeddings"]
    for path, body in zip(paths, bodies, strict=True):
        assert node.request("POST", path, body).status == 200
    return [json.dumps(body).encode() for body in bodies]


def assert_nothing_in_clear(node: Node) -> None:
    for path, content in node.kept().items():
        assert CANARY.encode() not in content, path


def test_without_a_mode_records_say_nothing_of_content(tmp_path: Path) -> None:
    with running(tmp_path / "n", AuditSettings()) as node:
        talk(node)
        assert {e.content_commit + e.content_ref for pair in exchanged(node) for e in pair} == {""}
    assert_nothing_in_clear(node)


def test_a_committed_body_can_be_recognised_and_not_read(tmp_path: Path) -> None:
    with running(tmp_path / "n", AuditSettings(content="commit")) as node:
        bodies = talk(node)
        layout = node.config.layout
        for (request, response), body in zip(exchanged(node), bodies, strict=True):
            name = request.request_id
            assert request.content_commit == committed(layout, name, "asked", body)
            assert response.content_commit not in ("", request.content_commit)
        answer = b'[{"choice":0,"text":"' + CANARY.encode() + b'"}]'
        request, response = exchanged(node)[0]
        assert response.content_commit == committed(layout, request.request_id, "answered", answer)
        (tmp_path / "body").write_bytes(bodies[1])
        number = str(exchanged(node)[1][0].seq)
        arguments = ["audit", "match-content", number, str(tmp_path / "body")]
        found = CliRunner().invoke(app, [*arguments, "--root", str(layout.root)])
        assert found.exit_code == 0, found.output
        (tmp_path / "body").write_bytes(bodies[1] + b" ")
        found = CliRunner().invoke(app, [*arguments, "--root", str(layout.root)])
        assert found.exception is not None
    assert_nothing_in_clear(node)


def test_sealed_content_is_opened_on_the_auditor_s_machine(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["audit", "content-key", str(tmp_path / "key"), "--json"])
    settings = AuditSettings(content="sealed", auditor_key=json.loads(made.stdout)["auditor_key"])
    with running(tmp_path / "n", settings) as node:
        bodies = talk(node)
        layout = node.config.layout
        opened = []
        for pair in exchanged(node):
            for event in pair:
                arguments = ["audit", "open-content", str(event.seq), str(layout.audit_content)]
                arguments += ["--key", str(tmp_path / "key"), "--dir", str(layout.audit)]
                found = CliRunner().invoke(app, arguments)
                assert found.exit_code == 0, found.output
                opened.append(found.stdout_bytes)
    assert_nothing_in_clear(node)
    assert opened[0::2] == bodies
    assert [json.loads(text)[0]["text"] for text in opened[1:4:2]] == [CANARY, CANARY]
    assert json.loads(opened[5])["object"] == "list"


def test_what_the_auditor_hands_over_is_all_that_the_operator_has_to_write(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["audit", "content-key", str(tmp_path / "key")])
    assert parse_config(made.stdout.encode(), Layout(tmp_path)).audit.content == "sealed"
    assert "nothing else opens what is sealed" in made.stderr


def test_what_cannot_be_sealed_is_not_answered(tmp_path: Path) -> None:
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    settings = AuditSettings(content="sealed", auditor_key=base64.b64encode(public).decode())
    with running(tmp_path / "n", settings) as node:
        node.config.layout.audit_content.write_bytes(b"a file where the directory should be")
        answer = node.request("POST", "/v1/chat/completions", ask(CANARY))
        assert answer.status == 503
        assert b"audit_unavailable" in answer.body
        assert CANARY.encode() not in answer.body


def test_an_answer_that_was_cut_off_is_committed_as_far_as_it_came(tmp_path: Path) -> None:
    with running(tmp_path / "n", AuditSettings(content="commit")) as node:
        node.engine.behaviour.pause_after = 4
        frames = node.stream(ask(CANARY, stream=True))
        frames.hang_up()
        response = node.res()
        assert response.outcome == "cancelled"
        assert response.content_commit
