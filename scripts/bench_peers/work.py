"""The directory that keeps what was built, and processes that are stopped while others run."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
WORK = (REPOSITORY / ".build/bench").resolve()
"""Resolved, since CMake and environments keep the paths that they were made with."""
START_SECONDS = 900.0
STOP_SECONDS = 30.0


class PeerError(Exception):
    """A peer cannot be had here; its column stays empty, with this reason."""


def say(text: str) -> None:
    print(f"• {text}", flush=True)


def kept(name: str, build: Callable[[Path], None]) -> Path:
    """`WORK/name`, built by `build` in a directory that gets that name when it is complete."""
    target = WORK / name
    if not target.exists():
        partial = WORK / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        build(partial)
        partial.rename(target)
    return target


def call(
    *command: str | Path, log: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> None:
    """Run a long command with its output in `log`. Raises PeerError with the last lines."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        done = subprocess.run(
            command,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            check=False,
        )
    if done.returncode:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise PeerError(f"`{Path(command[0]).name}` failed with {done.returncode}:\n{said}")


def digest_of(paths: Iterable[Path], *words: str) -> str:
    """A short name for the content of Python files below `paths` and some words."""
    digest = hashlib.sha256("\0".join(words).encode())
    for path in paths:
        for file in sorted(path.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A process in a group of its own, which can be stopped and continued."""

    def __init__(
        self, command: Sequence[str | Path], log: Path, *, env: Mapping[str, str] | None = None,
        pipes: bool = False,
    ) -> None:  # fmt: skip
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=output,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                text=True,
            )

    def pause(self) -> None:
        """Stop all its threads: engines keep them spinning when they have nothing to do."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue them."""
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self.popen.poll() is None:
            self.resume()
            self.popen.terminate()
            try:
                self.popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self.popen.pid, signal.SIGKILL)
                self.popen.wait()

    def resident_bytes(self) -> int:
        """Its share of physical memory, pages shared with others in part (Pss)."""
        lines = Path(f"/proc/{self.popen.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready`. Raises PeerError if the process ends or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self.popen.poll() is not None or time.monotonic() > deadline:
                raise PeerError(f"it does not start:\n{self._said()}")
            time.sleep(0.2)

    def _signal(self, number: signal.Signals) -> None:
        # One that has crashed is noticed when it is asked next.
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    def _said(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])


def answers(url: str, has: str = "") -> bool:
    """Whether a GET of `url` is answered with 200 and a body that contains `has`."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return has in response.read().decode(errors="replace")
    except (urllib.error.URLError, OSError):
        return False


def machine_words() -> str:
    """Processor and memory, in one line."""
    from installer.bench.report import this_machine

    machine = this_machine()
    return (
        f"{machine.processor}, {machine.processors} processors, "
        f"{machine.memory_bytes / 1024**3:.0f} GiB, Python {sys.version.split()[0]}"
    )
