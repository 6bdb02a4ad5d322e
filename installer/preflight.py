"""What must be true before anything is changed: every blocker at once, each with its remedy.

Owns the judgement: `blockers(facts, needs)` is pure. `measure` looks at the machine and changes
nothing. Refuses to stop at the first problem: an operator who stands at the node with a stick
wants the whole list.
"""

from __future__ import annotations

import errno
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config import Config
from appliance.errors import Blocker
from installer import gpu_preflight, memory, room
from installer.gpu import Gpus
from installer.gpu_preflight import GpuNeeds
from installer.room import Disk, Share, nearest, size

PYTHON_VERSIONS = ((3, 11), (3, 12), (3, 13))
GLIBC = (2, 36)
"""Of Debian 12: the newest that the wheels on the media may ask for (wheelhouse.GLIBC_MINOR)."""
SOCKET_PATH_BYTES = 107
"""sockaddr_un, unix(7)."""
SPARE_DISK_BYTES = 512 * 1024 * 1024
"""For the audit log, usage records and the system itself."""
CLOCK_SLACK_SECONDS = 24 * 3600
_PORT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Facts:
    """The machine as it is."""

    system: str
    architecture: str
    python: tuple[int, int]
    implementation: str
    glibc: tuple[int, int]
    is_root: bool
    has_systemd: bool
    writable: bool
    memory: int
    port_taken: bool
    socket_path_bytes: int
    now: float
    """Unix seconds by the machine's clock."""
    installed: str
    """Version that is installed, or empty."""
    disks: Mapping[Path, Disk] = field(default_factory=dict)
    """Of each directory that something is put into."""
    gpus: Gpus = field(default_factory=Gpus)
    listening: tuple[Blocker, ...] = ()
    """What stands in the way of where the endpoint is to listen."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What this installation asks of the machine. Sizes in bytes, times in Unix seconds."""

    system_install: bool
    root: Path
    port: int
    version: str
    memory: int
    issued_at: float
    room: tuple[Share, ...] = ()
    gpu: GpuNeeds = field(default_factory=GpuNeeds)


def measure(config: Config, *, running: bool, installed: str, gpus: Gpus) -> Facts:
    """Look at this machine. `running`: the port is taken by the node that is being installed."""
    layout, api = config.layout, config.api
    root = nearest(layout.state)
    return Facts(
        system=platform.system(),
        architecture=platform.machine(),
        python=sys.version_info[:2],
        implementation=platform.python_implementation(),
        glibc=_glibc(),
        is_root=os.geteuid() == 0,
        has_systemd=Path("/run/systemd/system").is_dir(),
        writable=os.access(root, os.W_OK | os.X_OK),
        memory=memory.there(),
        port_taken=not running and _port_stays_taken(api.listen_host, api.listen_port),
        socket_path_bytes=len(os.fsencode(layout.engine_socket)),
        now=time.time(),
        installed=installed,
        disks=room.look(
            (layout.state, layout.releases, layout.models, layout.artifacts, layout.audit)
        ),
        gpus=gpus,
        listening=tuple(listening_blockers(config)),
    )


def listening_blockers(config: Config) -> Iterator[Blocker]:
    """Why the endpoint could not serve where the settings say, and as they say."""
    api = config.api
    if not _is_ours(api.listen_host):
        yield Blocker(
            "listen_host",
            f"{api.listen_host} is not an address of this machine",
            f"give the machine that address, or correct api.listen_host in "
            f"{config.layout.config_file}",
        )
    if api.client_certificates and not (config.layout.tls / "clients.crt").exists():
        yield Blocker(
            "client_authority",
            "callers have to show a certificate, and no authority for these was given",
            "set api.client_certificates = false, install, `appliance tls trust CA_FILE`, then "
            "set it again and `appliance tls apply`",
        )


def blockers(facts: Facts, needs: Needs) -> list[Blocker]:
    """Everything that stands in the way; empty if nothing does."""
    return [
        *_platform(facts),
        *_rights(facts, needs),
        *_room(facts, needs),
        *gpu_preflight.blockers(facts.gpus, needs.gpu),
        *_state(facts, needs),
    ]


def _platform(facts: Facts) -> Iterator[Blocker]:
    if (facts.system, facts.architecture) != ("Linux", "x86_64"):
        yield Blocker(
            "platform",
            f"this machine is {facts.system} on {facts.architecture}",
            "use a machine with 64-bit Linux on an x86-64 processor",
        )
    if facts.implementation != "CPython" or facts.python not in PYTHON_VERSIONS:
        known = ", ".join(f"{major}.{minor}" for major, minor in PYTHON_VERSIONS)
        yield Blocker(
            "python",
            f"this is {facts.implementation} {facts.python[0]}.{facts.python[1]}",
            f"run the installer with CPython {known} (`python3.11 …`)",
        )
    if facts.system == "Linux" and facts.glibc < GLIBC:
        yield Blocker(
            "glibc",
            f"the C library is not glibc {GLIBC[0]}.{GLIBC[1]} or newer",
            "use Debian 12 or a later distribution",
        )


def _rights(facts: Facts, needs: Needs) -> Iterator[Blocker]:
    if needs.system_install and not facts.is_root:
        yield Blocker(
            "root",
            "a system installation needs root",
            "run the command with sudo, or install into a directory of yours with --root DIR",
        )
    elif not facts.writable:
        yield Blocker(
            "not_writable",
            f"{needs.root} cannot be written",
            "choose another directory, or mount its file system read-write",
        )
    if needs.system_install and not facts.has_systemd:
        yield Blocker(
            "systemd",
            "systemd does not run this machine",
            "boot with systemd, or install into a directory with --root DIR",
        )


def _room(facts: Facts, needs: Needs) -> Iterator[Blocker]:
    yield from room.blockers(facts.disks, needs.room)
    if facts.memory < needs.memory:
        yield Blocker(
            "memory",
            f"the machine has {size(facts.memory)} of memory, the models need {size(needs.memory)}",
            "use media with smaller models, or a machine with more memory",
        )


def _state(facts: Facts, needs: Needs) -> Iterator[Blocker]:
    yield from facts.listening
    if facts.port_taken:
        yield Blocker(
            "port",
            f"another program listens on port {needs.port}",
            f"stop it, or set api.listen_port in {needs.root / 'etc/appliance/appliance.toml'}",
        )
    if facts.socket_path_bytes > SOCKET_PATH_BYTES:
        yield Blocker(
            "socket_path",
            f"the engine's socket would have a path of {facts.socket_path_bytes} bytes, "
            f"the kernel allows {SOCKET_PATH_BYTES}",
            "choose a --root with a shorter path",
        )
    if facts.now < needs.issued_at - CLOCK_SLACK_SECONDS:
        yield Blocker(
            "clock",
            f"the clock says {_day(facts.now)}, but the media were signed on "
            f"{_day(needs.issued_at)}",
            "set the clock (`date --set`) and write it to the hardware (`hwclock --systohc`)",
        )
    if facts.installed and _order(facts.installed) > _order(needs.version):
        yield Blocker(
            "newer_installed",
            f"release {facts.installed} is installed, the media hold {needs.version}",
            "use media with the same or a newer release",
        )


def _port_stays_taken(host: str, port: int) -> bool:
    """Whether somebody listens, and goes on: daemons of ours may just be on their way out."""
    deadline = time.monotonic() + _PORT_SECONDS
    while _port_taken(host, port):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.1)
    return False


def _is_ours(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def _port_taken(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _glibc() -> tuple[int, int]:
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        major, minor = (int(part) for part in version.split(".")[:2])
    except (ValueError, OSError):
        return (0, 0)
    return (major, minor) if name == "glibc" else (0, 0)


def _order(version: str) -> tuple[tuple[int, str], ...]:
    """Numbers compare as numbers, so that 0.10 comes after 0.9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in version.split("."))


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
