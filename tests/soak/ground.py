"""The node that is soaked: both daemons under their supervisor, all its files on a small disk.

Owns the disk, a real ext4 in a file, the settings, and which process is which daemon now. Root
only, as a disk of one's own is.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.config import Config, load_config
from appliance.native import library
from installer.readiness import ReadinessSocket
from tests.conftest import REPOSITORY
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.engine_node import EngineNode
from tests.power.machine import EXT4, looped
from tests.shim.node import prepare
from tests.soak.supervised import MODULES

DISK_BYTES = 768 * 1024 * 1024
START_SECONDS = 120.0
STOP_SECONDS = 90.0
_FREE_SECONDS = 20.0
_SETTINGS = """\
[api]
listen_port = {port}
store_responses = true
store_files = true

[engine]
threads = 1
max_sequences = 8
cache_bytes = 67108864

[audit]
epoch_seconds = {epoch_seconds}
"""


def build_models(root: Path) -> None:
    """A chat model, with an 8-bit cache where its answers are exact all the same, and a reader."""
    node = EngineNode(root)
    precision = "w8a8" if library.supported() else "fp32"
    node.add(write_qwen3(root / "checkpoint"), name="chat", precision=precision)
    node.add(write_bert(root / "words"), name="letters")


class Ground:
    """The running node."""

    def __init__(self, config: Config, disk: Path, base: Path) -> None:
        self.config = config
        self.disk = disk
        """Where its file system is mounted."""
        self.log = base / "daemons.log"
        self.clock = base / "clock"
        """Seconds by which the endpoint's clock is wrong, as text."""
        self._readiness = ReadinessSocket()
        self._supervisor: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self.config.api.listen_port

    def start(self, preload: Path | None = None) -> None:
        """Start both daemons; returns when they serve. `preload` is a library for them."""
        environment = os.environ | self._readiness.environment
        if preload is not None:
            environment |= {"LD_PRELOAD": str(preload), "SOAK_CLOCK": str(self.clock)}
        with self.log.open("ab") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.supervised", str(self.config.layout.root)],
                env=environment,
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
            )
        self._supervisor = supervisor
        serves = self._readiness.wait(START_SECONDS, until=lambda: supervisor.poll() is not None)
        assert serves, self.log.read_text()[-4000:]

    def stop(self) -> None:
        """Stop both gracefully; whatever was done to them, none is left."""
        if self._supervisor is not None:
            self._supervisor.terminate()
            try:
                self._supervisor.wait(STOP_SECONDS)
            finally:
                self._supervisor.kill()
            self._supervisor = None

    def close(self) -> None:
        """Stop, and never start again."""
        self.stop()
        self._readiness.close()

    @property
    def supervised(self) -> bool:
        """Whether the supervisor lives: it gives up on a daemon that keeps failing."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def process(self, name: str) -> int | None:
        """The process of the daemon `name` now; None while there is none."""
        if self._supervisor is None:
            return None
        return next(
            (pid for pid in children(self._supervisor.pid) if _runs(pid, MODULES[name])), None
        )

    def await_process(self, name: str) -> int:
        """The same, as soon as there is one."""
        deadline = time.monotonic() + START_SECONDS
        while (pid := self.process(name)) is None:
            assert time.monotonic() < deadline, f"no {name} was started"
            time.sleep(0.05)
        return pid


def open_files(disk: Path, pid: int | str = "self") -> list[str]:
    """The files below `disk` that a process holds."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(str(link.readlink()))
    return [path for path in found if path.startswith(f"{disk}/")]


def _await_free(disk: Path) -> None:
    """Wait a while for those who were killed in the middle of something."""
    gc.collect()
    deadline = time.monotonic() + _FREE_SECONDS
    while time.monotonic() < deadline:
        numbers = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
        with suppress(OSError):
            if not any(open_files(disk, number) for number in numbers):
                return
        time.sleep(0.2)


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that live; none if it does not."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        return []
    return found


def _runs(pid: int, module: str) -> bool:
    try:
        return module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


@contextmanager
def prepared(models: Path, *, epoch_seconds: int = 300) -> Iterator[Ground]:
    """A node on a copy of the root `models`, not started; stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="soak") as directory:
        base = Path(directory)
        image, disk = base / "image", base / "m"
        image.touch()
        os.truncate(image, DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        with looped(image, disk, EXT4):
            root = disk / "n"
            subprocess.run(["cp", "-a", str(models), str(root)], check=True)
            config = prepare(root)
            file = config.layout.config_file
            file.parent.mkdir(parents=True, exist_ok=True)
            port = config.api.listen_port
            file.write_text(_SETTINGS.format(port=port, epoch_seconds=epoch_seconds))
            ground = Ground(load_config(root), disk, base)
            try:
                yield ground
            finally:
                ground.close()
                _await_free(disk)
