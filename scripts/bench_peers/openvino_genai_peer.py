"""OpenVINO GenAI: continuous batching in a process of its own, without HTTP."""

from __future__ import annotations

import json
import os
import venv
from dataclasses import asdict
from pathlib import Path

from bench_peers.appliance_node import CAPACITY, STREAMS
from bench_peers.checkpoint import Shape
from bench_peers.work import WORK, PeerError, Process, call, kept, say
from bench_peers.workloads import Figures, Workload

PACKAGES = ("openvino-genai==2026.4.1.0", "optimum-intel[openvino]==2.2.0", "torch==2.13.0")
WORKER = Path(__file__).with_name("openvino_worker.py")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}


class OpenVino:
    """The checkpoint in int4, asked by a worker that its environment's interpreter runs."""

    name = "OpenVINO GenAI"
    version = f"{PACKAGES[0]}, int4 of {PACKAGES[1].replace('[openvino]', '')}"

    def __init__(self, shape: Shape, checkpoint: Path) -> None:
        self._shape = shape
        self._checkpoint = checkpoint

    def prepare(self) -> None:
        """Make the environment and export the checkpoint; both are kept."""
        self._python = _environment() / "bin/python"
        self._model = kept(f"openvino-{self._shape.name}", self._export)

    def start(self) -> None:
        """Start the worker and wait until its pipeline is there."""
        self._process = Process(
            [self._python, WORKER, self._model, str(STREAMS * CAPACITY), str(self._shape.tokens)],
            WORK / "logs/openvino.log",
            env=OFFLINE,
            pipes=True,
        )
        if self._line() != "ready":
            raise PeerError("its worker does not start; .build/bench/logs/openvino.log says why")

    def measure(self, workload: Workload) -> Figures:
        """Ask the worker. Raises PeerError if it ends."""
        assert self._process.popen.stdin is not None
        self._process.popen.stdin.write(json.dumps(asdict(workload)) + "\n")
        self._process.popen.stdin.flush()
        values: list[float] = json.loads(self._line() or "null") or []
        if len(values) != len(workload.rows):
            raise PeerError("its worker ended; .build/bench/logs/openvino.log says why")
        return {row.name: value for row, value in zip(workload.rows, values, strict=True)}

    def remark(self) -> str:
        return "in its own process, without HTTP"

    def pause(self) -> None:
        self._process.pause()

    def resume(self) -> None:
        self._process.resume()

    def resident_bytes(self) -> int:
        return self._process.resident_bytes()

    def stop(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:
            process.end()

    def _line(self) -> str:
        assert self._process.popen.stdout is not None
        return self._process.popen.stdout.readline().strip()

    def _export(self, directory: Path) -> None:
        say("exporting the checkpoint for OpenVINO in int4")
        call(
            *(self._python, "-m", "optimum.commands.optimum_cli", "export", "openvino"),
            *("--model", self._checkpoint, "--task", "text-generation-with-past"),
            *("--weight-format", "int4", directory),
            log=WORK / "logs/openvino-export.log",
            env=OFFLINE | {"PATH": f"{self._python.parent}{os.pathsep}{os.environ['PATH']}"},
        )


def _environment() -> Path:
    """The environment; it is not moved, since its programs name its place."""
    directory, done = WORK / "openvino-env", WORK / "openvino-env/.complete"
    want = " ".join(PACKAGES)
    if done.exists() and done.read_text() == want:
        return directory
    say("installing OpenVINO GenAI and optimum-intel in an environment of their own")
    venv.create(directory, with_pip=True, clear=True)
    log = WORK / "logs/openvino-install.log"
    pip: list[str | Path] = [directory / "bin/python", "-m", "pip"]
    call(*pip, "install", *PACKAGES, log=log)
    # It comes along for pictures, and does not match every build of torch.
    call(*pip, "uninstall", "-y", "torchvision", log=log)
    done.write_text(want)
    return directory
