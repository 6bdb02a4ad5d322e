"""llama-server: built from the source archive on the package index, for this processor."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from pathlib import Path

from bench_peers.appliance_node import CAPACITY, STREAMS
from bench_peers.checkpoint import Shape
from bench_peers.over_http import Endpoint
from bench_peers.work import WORK, PeerError, Process, answers, call, free_port, kept, say
from bench_peers.workloads import Figures, Workload

RELEASE = "0.3.36"
PACKAGE = f"llama-cpp-python=={RELEASE}"
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)


class LlamaServer:
    """llama-server with the checkpoint in Q4_0."""

    name = "llama-server"
    version = f"llama.cpp of {PACKAGE}, Q4_0"

    def __init__(self, shape: Shape, checkpoint: Path, *, jobs: int) -> None:
        self._shape = shape
        self._checkpoint = checkpoint
        self._jobs = jobs

    def prepare(self) -> None:
        """Fetch, build, convert, quantize; each is kept."""
        for tool in ("cmake", "c++"):
            if shutil.which(tool) is None:
                raise PeerError(f"{tool} is not installed")
        self._source = kept(f"llama-source-{RELEASE}", _fetch)
        self._programs = kept(f"llama-programs-{RELEASE}", self._build)
        self._model = kept(f"llama-{self._shape.name}", self._convert) / "q4_0.gguf"

    def start(self) -> None:
        """Start it with a context for as many streams as ours, and wait until it serves."""
        port = free_port()
        self._process = Process(
            [
                self._programs / "llama-server",
                *("--model", self._model, "--alias", "bench"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--parallel", str(STREAMS), "--ctx-size", str(STREAMS * CAPACITY)),
                # No second cache of former prompts in memory: capacity is compared as it is.
                *("--cache-ram", "0"),
                *("--threads", str(len(os.sched_getaffinity(0)))),
            ],
            WORK / "logs/llama-server.log",
        )
        url = f"http://127.0.0.1:{port}"
        self._process.until(lambda: answers(f"{url}/health"))
        self._endpoint = Endpoint(f"{url}/v1", "bench")

    def measure(self, workload: Workload) -> Figures:
        return self._endpoint.measure(workload)

    def remark(self) -> str:
        return self._endpoint.remark()

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

    @property
    def _llama(self) -> Path:
        return next(self._source.glob("*/vendor/llama.cpp"))

    def _build(self, directory: Path) -> None:
        say(f"building llama.cpp with {self._jobs} jobs, which takes a while")
        log, tree = WORK / "logs/llama-build.log", WORK / f"llama-build-{RELEASE}"
        call("cmake", "-S", self._llama, "-B", tree, *_OPTIONS, log=log)
        targets = ("llama-server", "llama-quantize")
        call(
            *("cmake", "--build", tree, "-j", str(self._jobs), "--target", *targets),
            log=log,
        )
        for target in targets:
            shutil.copy2(tree / "bin" / target, directory / target)

    def _convert(self, directory: Path) -> None:
        say("converting the checkpoint for llama.cpp and quantizing it")
        log, whole = WORK / "logs/llama-convert.log", directory / "f16.gguf"
        gguf = self._llama / "gguf-py"
        paths = os.pathsep.join(map(str, (gguf, Path(__file__).parent.parent)))
        call(
            *(sys.executable, "-m", "bench_peers.gguf_file", self._checkpoint, whole),
            log=log,
            env={"PYTHONPATH": paths},
        )
        call(self._programs / "llama-quantize", whole, directory / "q4_0.gguf", "Q4_0", log=log)
        whole.unlink()


def _fetch(directory: Path) -> None:
    say(f"fetching the source archive of {PACKAGE}")
    # pip asks the archive for its metadata, so its build backend comes along for a moment.
    call(
        *(sys.executable, "-m", "pip", "download", "--no-deps"),
        *("--no-binary", "llama-cpp-python", "-d", directory, PACKAGE),
        log=WORK / "logs/llama-fetch.log",
    )
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")
    archive.unlink()
