"""What a process tree tried to reach, read from strace's log.

Everything that is neither a Unix socket, nor the kernel (netlink), nor the node's own port on
loopback counts as an attempt to leave. Port 53 of loopback counts too: that is a name lookup on
a machine without a name server.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

CALLS = "connect,sendto,sendmsg,sendmmsg"
_STRACE = ("strace", "--follow-forks", "--seccomp-bpf", "--quiet=all", "-e", f"trace={CALLS}")
_LOCAL = frozenset({"AF_UNIX", "AF_LOCAL", "AF_NETLINK", "AF_UNSPEC"})
_FAMILY = re.compile(r"sa_family=(AF_\w+)")
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')


@dataclass(frozen=True, slots=True)
class Attempt:
    """One address that a call named."""

    family: str
    address: str
    port: int
    line: str

    def leaves(self, own_port: int) -> bool:
        """Whether it aims beyond this node's own endpoint."""
        if self.family in _LOCAL:
            return False
        if self.family not in {"AF_INET", "AF_INET6"} or not self.address:
            return True
        return not (ip_address(self.address).is_loopback and self.port == own_port)


def untraceable() -> str:
    """Why processes cannot be traced on this machine; nothing if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    works = subprocess.run([*_STRACE, "--output", "/dev/null", "true"], capture_output=True)
    said = works.stderr.decode(errors="replace")
    return f"strace cannot trace here: {said}" if works.returncode else ""


def strace(log: Path) -> list[str]:
    """The command prefix that logs every process's network calls to `log`."""
    if reason := untraceable():
        pytest.skip(reason)
    return [*_STRACE, "--string-limit=0", "--output", str(log)]


def attempts(log: Path) -> Sequence[Attempt]:
    """Every address in `log`; calls on connected sockets name none."""
    return [
        attempt
        for line in log.read_text(errors="replace").splitlines()
        for attempt in _addresses(line)
    ]


def _addresses(line: str) -> Sequence[Attempt]:
    starts = [match.start() for match in _FAMILY.finditer(line)]
    ends = [*starts[1:], len(line)]
    return [_attempt(line[a:b], line) for a, b in zip(starts, ends, strict=False)]


def _attempt(part: str, line: str) -> Attempt:
    family = _FAMILY.match(part)
    assert family is not None, "the part starts with one"
    port, address = _PORT.search(part), _ADDRESS.search(part)
    return Attempt(
        family[1],
        (address[1] or address[2]) if address else "",
        int(port[1]) if port else 0,
        line,
    )
