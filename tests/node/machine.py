"""A booted node: systemd as process 1 in its own namespaces, with loopback and nothing else.

systemd-nspawn shares this machine's kernel, so users, units, sandboxes, sockets and reboots are
the real ones. The root file system is an overlay: the base tree stays as debootstrap left it.
"""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

BOOT_SECONDS = 300
_REBOOT = 133
"""With --keep-unit, systemd-nspawn leaves starting again to who started it."""
_ENFORCING = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
"""Without cgroup2 and bpf(2) systemd silently enforces no IPAddressDeny and no DevicePolicy."""
_SETTLED = frozenset({"running", "degraded"})


class Machine:
    """One node. `boot` and `power_off` may alternate; the disk stays between them."""

    def __init__(self, root: Path, work: Path, media: Path) -> None:
        self._root = root
        self._media = media
        self.console = work / "console.log"
        self._process: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Start the node and wait until its start-up has settled."""
        command = [
            "systemd-nspawn", "--quiet", "--directory", str(self._root), "--boot",
            "--private-network", "--keep-unit", "--register=no", "--machine", f"node-{os.getpid()}",
            f"--bind-ro={self._media}:/media/usb", "--system-call-filter=bpf",
        ]  # fmt: skip
        controller, terminal = pty.openpty()
        self._process = subprocess.Popen(
            command,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            env={**os.environ, **_ENFORCING},
        )
        os.close(terminal)
        threading.Thread(target=self._keep_console, args=(controller,), daemon=True).start()
        self._wait_until_settled()

    def reboot(self) -> None:
        """Restart through the node's own systemd."""
        process = self._process
        assert process is not None, "the node is off"
        self.run("systemctl", "reboot", check=False)
        assert process.wait(timeout=BOOT_SECONDS) == _REBOOT, "the node went down for a reboot"
        self.boot()

    def power_off(self) -> None:
        """Shut the node down, by force if it does not obey."""
        process = self._process
        if process is None:
            return
        with suppress(AssertionError, OSError):
            self.run("systemctl", "poweroff", check=False)
        try:
            process.wait(timeout=BOOT_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        self._process = None

    def run(
        self, *command: str, check: bool = True, timeout: float = 900, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` as root inside the node, with a clean environment."""
        leader = self._leader()
        assert leader is not None, f"the node is not running; see {self.console}"
        # A node's root could set this machine's clock: time is no namespace of its own.
        enter = ["nsenter", "--target", str(leader), "--all", "setpriv", "--bounding-set=-sys_time"]
        clean = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        done = subprocess.run(
            [*enter, *clean, "HOME=/root", "LANG=C.UTF-8", *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            input=stdin,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def copy_in(self, source: Path, target: str) -> None:
        """Put the directory `source` on the node's disk at `target`, which is absolute."""
        shutil.copytree(source, self._root / target.lstrip("/"))

    def _wait_until_settled(self) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            if self._leader() is not None:
                state = self.run("systemctl", "is-system-running", check=False)
                if state.stdout.strip() in _SETTLED:
                    return
            self._not_after(deadline, "the node did not start")

    def _not_after(self, deadline: float, complaint: str) -> None:
        assert self._process is not None
        if time.monotonic() > deadline or self._process.poll() is not None:
            raise AssertionError(f"{complaint}\n{self.console.read_text(errors='replace')}")
        time.sleep(0.2)

    def _leader(self) -> int | None:
        """Process 1 of the node, as this machine numbers it."""
        if self._process is None:
            return None
        for pid in _descendants(self._process.pid):
            with suppress(OSError):
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if b"container=systemd-nspawn" in environment:
                    return pid
        return None

    def _keep_console(self, controller: int) -> None:
        with self.console.open("ab") as log, suppress(OSError):
            while data := os.read(controller, 65536):
                log.write(data)
                log.flush()
        os.close(controller)


@contextmanager
def machine(base: Path, work: Path, media: Path) -> Iterator[Machine]:
    """A booted node on an overlay of `base`; its media are the directory `media`, read-only."""
    upper, scratch, root = (work / name for name in ("upper", "scratch", "root"))
    for directory in (upper, scratch, root):
        directory.mkdir(parents=True)
    options = f"lowerdir={base},upperdir={upper},workdir={scratch}"
    with mounted(["-t", "overlay", "-o", options, "overlay", str(root)], root):
        node = Machine(root, work, media)
        try:
            node.boot()
            yield node
        finally:
            node.power_off()


@contextmanager
def mounted(arguments: Sequence[str], target: Path) -> Iterator[None]:
    """mount(8) with `arguments` until the end of the block."""
    subprocess.run(["mount", *arguments], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(target)], check=True)


def _descendants(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from _descendants(int(child))
