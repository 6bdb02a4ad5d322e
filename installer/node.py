"""The node that an installation changes: a whole system, or a prefix.

Owns what differs between the two: users and ownership, units or a foreground supervisor, and
how the daemons are started for the proof. Refuses to know of media and models. Every method may
be repeated, and killed in the middle and repeated.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.config import ApiSettings, Layout, load_config
from appliance.errors import NotFoundError, UnavailableError
from appliance.fsops import fsync_dir, make_dirs, symlink_durable, write_durable
from appliance.interpreter import engine_python
from installer import local_endpoint, supervise, units
from installer.failures import Failure, failure_of
from installer.gpu import look, unit_nodes
from installer.progress import Progress
from installer.readiness import ReadinessSocket
from installer.staging import InstalledRelease, current_release, make_current

_START_SECONDS = 1800.0
_COMMAND_LINK = Path("usr/local/bin/appliance")


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory of a node. `user` and `group` hold in a system installation."""

    path: Path
    mode: int
    user: str = "root"
    group: str = "root"


def directories(layout: Layout) -> tuple[Directory, ...]:
    """Every directory that the installer makes; what is not listed here belongs to one of them."""
    engine, api, shared = units.ENGINE_USER, units.API_USER, units.GROUP
    return (
        Directory(layout.config_file.parent, 0o755),
        Directory(layout.releases.parent, 0o755),
        Directory(layout.releases, 0o755),
        Directory(layout.state, 0o755),
        Directory(layout.trust, 0o755),
        Directory(layout.node, 0o755),
        Directory(layout.models, 0o750, group=engine),
        Directory(layout.artifacts, 0o750, group=engine),
        Directory(layout.docs, 0o755),
        Directory(layout.audit, 0o750, api, shared),
        Directory(layout.audit_key, 0o700, api, api),
        Directory(layout.audit_content, 0o700, api, api),
        Directory(layout.access, 0o700, api, api),
        Directory(layout.metering, 0o700, api, api),
        Directory(layout.responses, 0o700, api, api),
        Directory(layout.tls, 0o755, api, api),
        Directory(layout.install_state, 0o700),
        Directory(layout.run, 0o750, engine, shared),
    )


class Node(Protocol):
    """What an installation asks of the machine."""

    layout: Layout
    is_system: bool
    engine_user: str | None
    """Who compiles; None: whoever installs."""

    def prepare(self) -> None:
        """Users and directories."""

    def is_running(self) -> bool:
        """Whether the endpoint of this node is up."""

    def services(self) -> dict[str, str]:
        """State of each daemon, in the supervisor's words."""

    def failures(self) -> tuple[Failure, ...]:
        """The daemons that should run and do not, each with the way out."""

    def deploy(self, release: InstalledRelease) -> None:
        """Make `release` the one that starts from now on."""

    def running(self, progress: Progress) -> AbstractContextManager[None]:
        """Within the block, the daemons of the current release serve."""

    def restart_engine(self, progress: Progress) -> None:
        """If the engine runs, let it start again: another interpreter was chosen for it."""

    def configure_endpoint(self, api: ApiSettings, progress: Progress) -> None:
        """Let the endpoint be reached as `api` says; if it runs, it starts again."""


def node_at(layout: Layout) -> Node:
    """The node whose root is `layout.root`."""
    return SystemNode(layout) if layout.root == Path("/") else PrefixNode(layout)


class SystemNode:
    """The machine itself: service users, systemd units."""

    is_system = True
    engine_user: str | None = units.ENGINE_USER

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def prepare(self) -> None:
        """Create the users by systemd-sysusers(8), whose changes are atomic, and directories."""
        _write_if_changed(self.layout.root / units.SYSUSERS_FILE, units.sysusers(self.layout))
        _call("systemd-sysusers", str(self.layout.root / units.SYSUSERS_FILE))
        for directory in directories(self.layout):
            make_dirs(directory.path, mode=0o755)
            owner = pwd.getpwnam(directory.user).pw_uid, grp.getgrnam(directory.group).gr_gid
            os.chown(directory.path, *owner)
            directory.path.chmod(directory.mode)

    def is_running(self) -> bool:
        """Whether systemd says that the endpoint serves."""
        return _unit_property(units.SHIM_UNIT, "ActiveState") == "active"

    def services(self) -> dict[str, str]:
        """What systemd says of both units."""
        return {
            unit.removesuffix(".service"): _unit_property(unit, "ActiveState")
            for unit in units.DAEMONS
        }

    def failures(self) -> tuple[Failure, ...]:
        """What systemd gave up, or starts again and again."""
        shown = (
            failure_of(
                unit,
                _unit_property(unit, "ActiveState"),
                _unit_property(unit, "SubState"),
                _unit_property(unit, "Result"),
            )
            for unit in units.DAEMONS
        )
        return tuple(failure for failure in shown if failure)

    def deploy(self, release: InstalledRelease) -> None:
        """Units, the `current` link and the command."""
        make_current(self.layout, release)
        unit_directory = self.layout.root / units.UNIT_DIRECTORY
        api = load_config(self.layout.root).api
        files = units.unit_files(self.layout, release.python, _gpu_access(release), api)
        for name, text in files.items():
            _write_if_changed(unit_directory / name, text)
        if units.GPU_UNIT not in files:
            (unit_directory / units.GPU_UNIT).unlink(missing_ok=True)
        link = self.layout.root / _COMMAND_LINK
        make_dirs(link.parent, mode=0o755)
        symlink_durable(link, str(self.layout.command))
        _call("systemctl", "daemon-reload")
        _call("systemctl", "enable", "--quiet", units.TARGET)

    def running(self, progress: Progress) -> AbstractContextManager[None]:
        """Start what does not run yet, restart what runs another release or by other settings.

        They stay up.
        """
        release = current_release(self.layout)
        assert release is not None, "a release is deployed before it is started"
        pythons = {
            units.ENGINE_UNIT: engine_python(self.layout, release.python),
            units.SHIM_UNIT: release.python,
        }
        config = load_config(self.layout.root)
        for unit, python in pythons.items():
            serves = _runs_with(unit, python) and (
                unit != units.SHIM_UNIT or local_endpoint.is_as_set(config)
            )
            if not serves:
                progress.step(f"starting {unit}")
                _call("systemctl", "reset-failed", unit, check=False)
                _start_unit(unit)
        _call("systemctl", "start", units.TARGET)
        return nullcontext()

    def restart_engine(self, progress: Progress) -> None:
        """Through systemd; what is stopped stays so."""
        if _unit_property(units.ENGINE_UNIT, "ActiveState") == "active":
            progress.step(f"starting {units.ENGINE_UNIT} again")
            _start_unit(units.ENGINE_UNIT)

    def configure_endpoint(self, api: ApiSettings, progress: Progress) -> None:
        """Its unit, which says from where it can be reached; what is stopped stays so."""
        release = current_release(self.layout)
        if release is None:
            raise NotFoundError("nothing is installed here", hint="run `appliance install MEDIA`")
        text = units.unit_files(self.layout, release.python, api=api)[units.SHIM_UNIT]
        _write_if_changed(self.layout.root / units.UNIT_DIRECTORY / units.SHIM_UNIT, text)
        _call("systemctl", "daemon-reload")
        if _unit_property(units.SHIM_UNIT, "ActiveState") in {"active", "failed", "activating"}:
            progress.step(f"starting {units.SHIM_UNIT} again")
            _call("systemctl", "reset-failed", units.SHIM_UNIT, check=False)
            _start_unit(units.SHIM_UNIT)


class PrefixNode:
    """A directory: no users, no systemd; `appliance serve` runs the daemons."""

    is_system = False
    engine_user: str | None = None

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def prepare(self) -> None:
        """Create the directories with their modes, all owned by whoever installs."""
        for directory in directories(self.layout):
            make_dirs(directory.path, mode=0o755)
            directory.path.chmod(directory.mode)

    def is_running(self) -> bool:
        """Whether `appliance serve` runs here."""
        return supervise.is_serving(self.layout)

    def services(self) -> dict[str, str]:
        """`appliance serve` runs both or none."""
        return {"appliance serve": "active" if self.is_running() else "inactive"}

    def failures(self) -> tuple[Failure, ...]:
        """None: `appliance serve` says itself why it ends, to whom it runs for."""
        return ()

    def deploy(self, release: InstalledRelease) -> None:
        """The `current` link is all there is."""
        make_current(self.layout, release)

    @contextmanager
    def running(self, progress: Progress) -> Iterator[None]:
        """Use `appliance serve` if it runs already, else run it for the length of the block."""
        if self.is_running():
            progress.note("`appliance serve` runs: restart it to use what is new in this release")
            yield
            return
        progress.step("starting both daemons for the proof")
        readiness = ReadinessSocket()
        log = self.layout.install_state / "serve.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [self.layout.command, "serve", "--root", self.layout.root],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **readiness.environment},
            )
        try:
            _wait_until_ready(process, readiness, log)
            yield
        finally:
            readiness.close()
            process.terminate()
            process.wait()

    def restart_engine(self, progress: Progress) -> None:
        """`appliance serve` belongs to who started it."""
        if self.is_running():
            progress.note("`appliance serve` runs: restart it to compute with what was chosen now")

    def configure_endpoint(self, api: ApiSettings, progress: Progress) -> None:
        """`appliance serve` belongs to who started it."""
        if self.is_running():
            progress.note(f"`appliance serve` runs: restart it to listen on {api.listen_host}")


def _wait_until_ready(
    process: subprocess.Popen[bytes], readiness: ReadinessSocket, log: Path
) -> None:
    if not readiness.wait(_START_SECONDS, until=lambda: process.poll() is not None):
        said = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise UnavailableError(
            "the daemons did not start: " + (" / ".join(said) or "no message"),
            hint=f"{log} has all that they said",
        )


def _write_if_changed(path: Path, text: str) -> None:
    make_dirs(path.parent, mode=0o755)
    if not path.exists() or path.read_text() != text:
        write_durable(path, text.encode(), mode=0o644)
        fsync_dir(path.parent)


def _gpu_access(release: InstalledRelease) -> units.GpuAccess | None:
    """What the engine of this release may use of the GPU, if it has programs for one."""
    if not release.uses_gpu():
        return None
    gpus = look()
    return units.GpuAccess(unit_nodes(gpus), gpus.groups, shutil.which("nvidia-modprobe") or "")


def _runs_with(unit: str, python: Path) -> bool:
    """Whether the unit serves with this interpreter; what a process is shows in /proc."""
    if _unit_property(unit, "ActiveState") != "active":
        return False
    pid = _unit_property(unit, "MainPID")
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return command[0] == os.fsencode(python)


def _start_unit(unit: str) -> None:
    done = _call("systemctl", "restart", unit, check=False)
    if done.returncode:
        own_words = f"_SYSTEMD_UNIT={unit}"
        journal = _call("journalctl", own_words, "-n", "2", "-o", "cat", "--no-pager", check=False)
        said = " / ".join(journal.stdout.strip().splitlines())
        raise UnavailableError(
            f"{unit} did not start: {said or done.stderr.strip()}",
            hint=f"`journalctl -u {unit}` has all that it said",
        )


def _unit_property(unit: str, name: str) -> str:
    return _call(
        "systemctl", "show", unit, f"--property={name}", "--value", check=False
    ).stdout.strip()


def _call(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_START_SECONDS
    )
    if check and done.returncode:
        raise UnavailableError(
            f"`{' '.join(command)}` failed: {done.stderr.strip()}",
            hint="`systemctl status` and `journalctl -b` say more",
        )
    return done
