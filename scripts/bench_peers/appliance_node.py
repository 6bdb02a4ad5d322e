"""This repository as one of those measured: engine daemon and endpoint, audit log and key."""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import appliance
from appliance.audit import create_signer
from appliance.config import Layout
from bench_peers.checkpoint import Shape
from bench_peers.over_http import Endpoint
from bench_peers.work import REPOSITORY, WORK, Process, answers, digest_of, free_port, kept, say
from bench_peers.workloads import Figures, Workload
from installer.passing_key import passing_key
from tests.fakes.engine_node import EngineNode

MODEL = "bench"
STREAMS, CAPACITY = 16, 2304
_KEY_SECONDS = 86_400
_SOURCES = ("installer/checkpoint", "appliance/compiler", "appliance/bundle")


class ApplianceNode:
    """A node below WORK that serves the checkpoint in one grade."""

    name = "appliance"

    def __init__(self, shape: Shape, checkpoint: Path, grade: str) -> None:
        self._shape = shape
        self._checkpoint = checkpoint
        self._grade = grade
        self._stack = ExitStack()
        self.version = f"{appliance.__version__}, {grade}"

    def prepare(self) -> None:
        """Build and compile the bundle, unless these sources have done so before."""
        sources = [REPOSITORY / name for name in _SOURCES]
        name = f"node-{self._shape.name}-{self._grade}-{digest_of(sources)}"
        self.root = kept(name, self._build)

    def start(self) -> None:
        """Start both daemons and wait until they serve."""
        layout, port = Layout(self.root), free_port()
        _settle(layout, port, self._shape)
        python = [sys.executable, "-m"]
        environment = {"PYTHONPATH": str(REPOSITORY)}
        self._engine = Process(
            [*python, "appliance.engine_daemon", "--root", self.root],
            WORK / "logs/engine.log",
            env=environment,
        )
        self._shim = Process(
            [*python, "appliance.shim", "--root", self.root], WORK / "logs/shim.log",
            env=environment,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        self._engine.until(lambda: answers(f"{url}/health", f'"{MODEL}"'))
        key = self._stack.enter_context(passing_key(layout, "scripts/bench", seconds=_KEY_SECONDS))
        self._endpoint = Endpoint(f"{url}/v1", MODEL, key)

    def measure(self, workload: Workload) -> Figures:
        return self._endpoint.measure(workload)

    def remark(self) -> str:
        return self._endpoint.remark()

    def pause(self) -> None:
        self._shim.pause()
        self._engine.pause()

    def resume(self) -> None:
        self._engine.resume()
        self._shim.resume()

    def resident_bytes(self) -> int:
        return self._engine.resident_bytes() + self._shim.resident_bytes()

    def stop(self) -> None:
        self._stack.close()
        for process in (getattr(self, "_shim", None), getattr(self, "_engine", None)):
            if process is not None:
                process.end()

    def _build(self, directory: Path) -> None:
        say(f"building and compiling our bundle in {self._grade}")
        # The artifact's record names no path, so the root may be renamed when it is complete.
        node = EngineNode(directory)
        node.add(self._checkpoint, name=MODEL, precision=self._grade)
        shutil.rmtree(directory / f"{MODEL}-1.0", ignore_errors=True)


def _settle(layout: Layout, port: int, shape: Shape) -> None:
    """What an installation leaves for the daemons, with room for 16 sequences of 2,304 tokens."""
    for directory in (layout.access, layout.metering, layout.run):
        directory.mkdir(parents=True, exist_ok=True)
    if not layout.audit.exists():
        layout.audit.mkdir(parents=True)
        create_signer(layout.audit_key, "bench")
    layout.config_file.parent.mkdir(parents=True, exist_ok=True)
    # A model takes half of the budget, so that its next version has room beside it.
    cache = 2 * STREAMS * CAPACITY * shape.token_bytes
    layout.config_file.write_text(
        f"[api]\nlisten_port = {port}\n"
        f"[engine]\nmax_sequences = {STREAMS}\nmax_context = {CAPACITY}\ncache_bytes = {cache}\n"
    )
