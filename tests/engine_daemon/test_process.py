"""The daemon as a process: its socket, its signals, its supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from appliance.engine_daemon.server import check_socket_path
from appliance.errors import ConfigError
from appliance.pb import engine_v1_pb2 as pb
from tests.engine_daemon.conftest import Client, RunNode, chat, rest, run
from tests.engine_daemon.test_service import ends, refused, tokens

PATIENCE = 120.0
"""Seconds until a test gives up."""


@contextmanager
def daemon(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The real daemon; entered when it has told its supervisor that it serves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        address = root / "notify"
        address.unlink(missing_ok=True)
        supervisor.bind(str(address))
        supervisor.settimeout(PATIENCE)
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance.engine_daemon", "--root", str(root)],
            env=os.environ | {"NOTIFY_SOCKET": str(address)},
            stderr=subprocess.PIPE,
        )
        try:
            assert supervisor.recv(100) == b"READY=1"
            yield process
        finally:
            process.kill()
            process.communicate()


def test_the_daemon_serves_stops_on_a_signal_and_leaves_no_socket(make_node: RunNode) -> None:
    node = make_node()
    with daemon(node.config.layout.root) as process:
        mode = node.socket.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, log
        assert b"chat 1.0 serves" in log
        assert b"Traceback" not in log
    assert not node.socket.exists()


def test_a_killed_daemons_socket_does_not_stand_in_the_way(make_node: RunNode) -> None:
    node = make_node()
    with daemon(node.config.layout.root) as process:
        process.kill()
        process.wait()
    assert node.socket.exists()
    with daemon(node.config.layout.root) as process:
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_node_without_models_is_served() -> None:
    with tempfile.TemporaryDirectory(prefix="empty") as root, daemon(Path(root)) as process:
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_stop_in_the_middle_of_loading_is_a_clean_one(make_node: RunNode) -> None:
    node = make_node()
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance.engine_daemon", "--root", str(node.config.layout.root)],
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + PATIENCE
    while not node.socket.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.terminate()
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, log
    assert b"Traceback" not in log
    assert not node.socket.exists()


def test_a_second_daemon_is_refused(make_node: RunNode) -> None:
    node = make_node()
    root = node.config.layout.root
    with daemon(root):
        second = subprocess.run(
            [sys.executable, "-m", "appliance.engine_daemon", "--root", str(root)],
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert second.returncode == 4
        assert b"another process" in second.stderr
        assert node.socket.exists()


def test_children_do_not_outlive_a_killed_daemon(make_node: RunNode) -> None:
    node = make_node()
    with daemon(node.config.layout.root) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        pids = [p for task in tasks for p in (task / children.name).read_text().split()]
        assert pids, "the template's process"
        process.kill()
        process.wait()
        deadline = time.monotonic() + PATIENCE
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_stop_lets_answers_end(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()
        with daemon(node.config.layout.root) as process:
            async with grpc.aio.insecure_channel(f"unix:{node.socket}") as channel:
                client = Client(channel)
                stream = client.engine.Generate(chat("user", max_tokens=400))
                await stream.read()
                process.terminate()
                assert len(tokens(await rest(stream))) == 400
            assert await asyncio.to_thread(process.wait, PATIENCE) == 0

    run(scenario())


def test_a_stop_cancels_what_takes_too_long_and_says_so(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node(max_sequences=1)
        async with node.run(drain_seconds=0.1) as client:
            streams = [client.engine.Generate(chat("user", max_tokens=480)) for _ in range(40)]
            for stream in streams:
                await stream.read()
            stopping = asyncio.create_task(node.server.stop())
            events = [await rest(stream) for stream in streams]
            reasons = {end.reason for stream in events for end in ends(stream)}
            assert pb.FINISH_REASON_CANCELLED in reasons
            assert all(len(ends(stream)) == 1 for stream in events), "each has its end"
            await stopping

    run(scenario())


def test_a_stopping_daemon_takes_no_new_calls(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()
        async with node.run() as client:
            stream = client.engine.Generate(chat("user", max_tokens=480))
            await stream.read()
            stopping = asyncio.create_task(node.server.stop())
            await asyncio.sleep(0)
            code, _, _ = await refused(client.generate(chat("user")))
            assert code is grpc.StatusCode.UNAVAILABLE
            stream.cancel()
            await stopping

    run(scenario())


def test_a_socket_path_that_the_kernel_cannot_take_is_refused() -> None:
    check_socket_path(Path("/" + "x" * 106))
    with pytest.raises(ConfigError, match="108"):
        check_socket_path(Path("/" + "x" * 107))
