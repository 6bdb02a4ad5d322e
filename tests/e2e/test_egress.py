"""Installing and serving never try to leave the machine, and the check would notice if they did."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.e2e.egress import attempts, strace
from tests.e2e.prefix import Installed, new_prefix
from tests.fakes.node_media import CHAT, EMBEDDING, NodeMedia

LATE_SECONDS = 20.0
"""ONNX Runtime's telemetry first looked for its collector after ten (decision 0065)."""
_CONTROL = """
import socket, contextlib
with contextlib.suppress(OSError), socket.socket() as s:
    s.settimeout(0.2); s.connect(("192.0.2.1", 443))
with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
    s.sendto(b"x", ("2001:db8::1", 53))
with contextlib.suppress(OSError):
    socket.getaddrinfo("name.invalid", 80)
with contextlib.suppress(OSError), socket.socket() as s:
    s.connect(("127.0.0.1", 8400))
"""


def test_the_check_sees_a_connection_a_datagram_and_a_name_lookup(tmp_path: Path) -> None:
    log = tmp_path / "strace.log"
    subprocess.run([*strace(log), sys.executable, "-c", _CONTROL], check=True)
    left = [a for a in attempts(log) if a.leaves(own_port=8400)]
    reached = {(a.address, a.port) for a in left}
    assert {("192.0.2.1", 443), ("2001:db8::1", 53)} <= reached
    lookups = {port for _, port in reached - {("2001:db8::1", 53)}}
    assert 53 in lookups, "the name lookup went to a name server, or to where one would be"
    assert ("127.0.0.1", 8400) not in reached
    assert ("127.0.0.1", 8400) in {(a.address, a.port) for a in attempts(log)}


def test_installing_and_a_chat_never_leave_the_machine(
    tmp_path: Path, node_media: NodeMedia, installed: Installed
) -> None:
    serving = tmp_path / "serve.log"
    tracer = strace(serving)
    prefix = installed.lend_programs(new_prefix(tmp_path / "n"))
    key = prefix.install(node_media)["api_key"]
    with prefix.serving(*tracer):
        begin = time.monotonic()
        prefix.chat(key, CHAT)
        assert any(prefix.embed(key, EMBEDDING, "hello"))
        time.sleep(max(0.0, begin + LATE_SECONDS - time.monotonic()))
    for log, port in ((installed.log, installed.port), (serving, prefix.port)):
        seen = attempts(log)
        assert seen, "the node's own sockets were seen"
        assert [a.line for a in seen if a.leaves(port)] == []
