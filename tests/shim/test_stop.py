"""Starting and stopping: nobody is lost, and nothing stays open in the log."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.audit.event import Recovery, Request, Response
from appliance.config import Config
from appliance.errors import NotFoundError, UnavailableError
from tests.conftest import REPOSITORY
from tests.fakes.engine import FakeEngine
from tests.shim.batch_input import form
from tests.shim.node import PATIENCE, Frames, Node, ShimThread, ask, eventually, prepare

CHAT_PATH = "/v1/chat/completions"


@contextmanager
def started(
    tmp_path: Path, drain_seconds: float, **settings: Any
) -> Iterator[tuple[Node, ShimThread]]:
    config = prepare(tmp_path, drain_seconds=drain_seconds, **settings)
    with FakeEngine(config.layout.engine_socket) as engine:
        shim = ShimThread(config)
        shim.start()
        yield Node(config, engine), shim
        shim.stop()
        shim.join()


def running_stream(node: Node) -> Frames:
    """A stream that the engine holds after two tokens."""
    node.engine.behaviour.pause_after = 2
    answer = node.stream(ask(stream=True))
    frames = iter(answer)
    for _ in range(3):
        next(frames)
    return answer


def test_a_running_stream_is_finished_before_the_end(tmp_path: Path) -> None:
    with started(tmp_path, drain_seconds=PATIENCE) as (node, shim):
        answer = running_stream(node)
        waiting = node.connect()
        assert node.request("GET", "/v1/models", connection=waiting).status == 200
        shim.stop()
        eventually(lambda: node.request("GET", "/v1/models", connection=waiting).status == 503)
        refused = node.request("POST", CHAT_PATH, ask(), connection=waiting)
        assert (refused.status, refused.error["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"] == "1"
        node.engine.behaviour.release.set()
        assert answer.documents()[-1] == "[DONE]"
        shim.join()
        assert node.res(answer.request_id).outcome == "ok"
        assert node.row(answer.request_id).outcome == "ok"
        assert node.reject(refused.request_id).code == "shutting_down"
        waiting.close()


def test_a_stream_that_does_not_end_is_ended_with_an_error_and_billed(tmp_path: Path) -> None:
    with started(tmp_path, drain_seconds=0.2) as (node, shim):
        answer = running_stream(node)
        shim.stop()
        last = answer.documents()[-1]
        assert last["error"]["code"] == "shutting_down"
        shim.join()
        res = node.res(answer.request_id)
        assert (res.outcome, res.code, res.tokens.generated) == ("error", "shutting_down", 2)
        assert node.engine.calls[answer.request_id].cancelled
        assert node.row(answer.request_id).completion_tokens == 2


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/v1/files", "multipart/form-data; boundary=xyz"), (CHAT_PATH, "application/json")],
)
def test_a_body_that_is_still_coming_holds_up_no_stop(
    tmp_path: Path, path: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence in a body would otherwise be waited out, and here for ever."""
    monkeypatch.setattr("appliance.shim.app._BODY_SECONDS", 1e6)
    with started(tmp_path, drain_seconds=0.2, store_files=True) as (node, shim):
        connection = node.connect()
        connection.putrequest("POST", path)
        connection.putheader("Authorization", f"Bearer {node.secret}")
        connection.putheader("Content-Type", kind)
        connection.putheader("Content-Length", "100000")
        connection.endheaders()
        connection.send(form(b"most private" * 50, purpose="batch")[0][:400])
        eventually(
            lambda: (
                b"appliance_http_requests_in_progress 2.0" in node.request("GET", "/metrics").body
                or None
            )
        )
        shim.stop()
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (
            503,
            "shutting_down",
        )
        shim.join()
        connection.close()


def test_an_idle_shim_stops_without_waiting(tmp_path: Path) -> None:
    with started(tmp_path, drain_seconds=2 * PATIENCE) as (node, shim):
        idle = node.connect()
        assert node.request("GET", "/health", connection=idle).status == 200
        shim.stop()
        shim.join()
        idle.close()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    with socket.create_server(("127.0.0.1", config.api.listen_port)):
        shim = ShimThread(config)
        with pytest.raises(UnavailableError, match=str(config.api.listen_port)):
            shim.start()
        with pytest.raises(UnavailableError):
            shim.join()


def test_a_node_without_an_audit_key_does_not_serve(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    (config.layout.audit_key / "audit.key").unlink()
    with pytest.raises(NotFoundError):
        ShimThread(config).start()


class Daemon:
    """`python -m appliance.shim`, as a supervisor starts it."""

    def __init__(self, config: Config) -> None:
        address = str(config.layout.run / "notify")
        Path(address).unlink(missing_ok=True)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(address)
        self._notify.settimeout(PATIENCE)
        config.layout.config_file.parent.mkdir(parents=True, exist_ok=True)
        config.layout.config_file.write_text(f"[api]\nlisten_port = {config.api.listen_port}\n")
        root = str(config.layout.root)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "appliance.shim", "--root", root],
            env={"NOTIFY_SOCKET": address},
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )

    def heard(self) -> str:
        """The next message to the supervisor that is not a sign of life."""
        while (message := self._notify.recv(100).decode()).startswith("WATCHDOG=1"):
            pass
        return message

    def end(self) -> tuple[int, str]:
        """Exit status and log, after it has ended."""
        _, log = self.process.communicate(timeout=PATIENCE)
        self._notify.close()
        return self.process.returncode, log


def test_the_daemon_is_ready_when_it_answers_and_ends_well_on_sigterm(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    with FakeEngine(config.layout.engine_socket) as engine:
        daemon = Daemon(config)
        assert daemon.heard() == "READY=1"
        node = Node(config, engine)
        engine.behaviour.seconds_per_step = 0.05
        answer = node.stream(ask(stream=True))
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.heard() == "STOPPING=1"
        assert answer.documents()[-1] == "[DONE]"
        status, log = daemon.end()
        assert status == 0, log
        assert "Traceback" not in log
        assert node.res(answer.request_id).outcome == "ok"


def test_a_request_cut_off_by_a_kill_is_closed_at_the_next_start(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    with FakeEngine(config.layout.engine_socket) as engine:
        first = Daemon(config)
        assert first.heard() == "READY=1"
        node = Node(config, engine)
        answer = running_stream(node)
        first.process.kill()
        first.end()
        answer.hang_up()
        eventually(lambda: engine.calls[answer.request_id].cancelled)
        engine.behaviour.release.set()
        second = Daemon(config)
        assert second.heard() == "READY=1"
        res = node.res(answer.request_id)
        assert res.outcome == "aborted"
        assert node.row(answer.request_id).outcome == "aborted"
        assert [e.reason for e in node.events() if isinstance(e, Recovery)] == ["open_requests"]
        assert node.request("POST", CHAT_PATH, ask()).status == 200
        second.process.terminate()
        assert second.end()[0] == 0


def test_a_daemon_that_cannot_start_says_why_and_exits_with_the_error_s_status(
    tmp_path: Path,
) -> None:
    config = prepare(tmp_path)
    (config.layout.audit_key / "audit.key").unlink()
    daemon = Daemon(config)
    status, log = daemon.end()
    assert status == NotFoundError.exit_status
    assert "audit signing key" in log
    assert "Traceback" not in log


def test_stopping_under_load_leaves_exactly_one_record_for_each_request(tmp_path: Path) -> None:
    with started(tmp_path, drain_seconds=0.3) as (node, shim):
        node.engine.behaviour.seconds_per_step = 0.02
        threads = [
            threading.Thread(target=_ask_until_refused, args=(node, bool(number % 2)))
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: len([e for e in node.events() if isinstance(e, Request)]) >= 8)
        shim.stop()
        shim.join()
        for thread in threads:
            thread.join(PATIENCE)
        requests = sorted(e.request_id for e in node.events() if isinstance(e, Request))
        responses = sorted(e.request_id for e in node.events() if isinstance(e, Response))
        assert requests == responses
        assert len(requests) >= 8


def _ask_until_refused(node: Node, stream: bool) -> None:
    try:
        while node.request("POST", CHAT_PATH, ask("x" * 10, stream=stream)).status == 200:
            pass
    except OSError:
        return
