"""The golden prompt of tiny models in every grade, by every graph that a GPU may be given.

A node takes the first graph that fits its memory, so a large card never tries the others. Here each
is compiled and compared with the processor, by the compiler's own processes, as on a node.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from appliance.compiler.child import run_compiler
from appliance.compiler.memory import on_gpu
from appliance.compiler.record import Outcome
from appliance.errors import ApplianceError
from bench_peers.checkpoint import TINY
from bench_peers.work import say
from gpu_check.node import Node
from gpu_check.staged_child import run_staged
from gpu_check.states import write_states
from gpu_check.wide_heads import write_wide_heads
from installer.checkpoint.quantize import Precision

GRADES: tuple[Precision, ...] = ("fp8", "w8a8", "int4", "int8", "fp16", "fp32")
"""What is least known, first."""
Found = tuple[str, tuple[float, float] | str]
"""Grade and what its weights are on the GPU; error and what was allowed, or why there is none."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Attributes:
    grade: of the bundle.
    adapters: it has room for some.
    states: the model keeps running states.
    wide: it has heads of 512 numbers beside narrower ones, and shared keys.
    stages: it is cut in two, and both are on the one card there is.
    """

    grade: Precision
    adapters: bool = False
    states: bool = False
    wide: bool = False
    stages: bool = False

    @property
    def words(self) -> str:
        """What it is called where it was not measured."""
        return f"golden prompt, {self.grade}{self._beside}"

    def named(self, precision: str) -> str:
        """What is measured of weights in `precision`."""
        return f"{self.grade} as {precision}{self._beside}"

    @property
    def _beside(self) -> str:
        beside = " with adapters" * self.adapters + " with running states" * self.states
        return beside + " with wide heads" * self.wide + " in two stages" * self.stages

    def write(self, node: Node, root: Path) -> Path:
        """The checkpoint, somewhere below `root`."""
        if self.states:
            return write_states(root / "states")
        return write_wide_heads(root / "heads") if self.wide else node.write(TINY)


TRIALS = (
    *map(Trial, GRADES),
    # This grade has both of the graphs.
    Trial("w8a8", adapters=True),
    Trial("w8a8", states=True),
    Trial("fp16", wide=True),
    Trial("fp16", stages=True),
)


def measure_grade(root: Path, release: Path, trial: Trial) -> Iterator[Found]:
    """Each graph of a bundle; `root` is there only meanwhile.

    Raises ApplianceError if the bundle cannot be built, or the processor does not compute it.
    """
    node = Node(root)
    try:
        checkpoint = trial.write(node, root)
        bundle = node.add(checkpoint, TINY.name, trial.grade, adapters=trial.adapters)
        golden = _folder(root / "golden")
        run_compiler(release / "venv/bin/python", ["--golden", str(bundle.directory), str(golden)])
        on_device = release / "venv-cuda13/bin/python"
        for graph in bundle.manifest.variants("cuda"):
            precision = on_gpu(bundle.manifest, graph)
            say(f"{trial.words}, as {precision}")
            out = _folder(root / precision)
            what, paths = trial.named(precision), (bundle.directory, out, golden)
            if trial.stages:
                yield from _said(what, partial(run_staged, on_device, paths))
            else:
                arguments = ["--provider", "cuda", *map(str, paths), precision, "1"]
                yield from _said(what, partial(run_compiler, on_device, arguments))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _said(what: str, compiled: Callable[[], bytes]) -> Iterator[Found]:
    """How near it is, or why there is nothing; and why its steps are not replayed, if so."""
    try:
        said = compiled()
    except ApplianceError as error:
        yield what, error.message
        return
    outcome = msgspec.json.decode(said, type=Outcome)
    yield what, (outcome.compared.error, outcome.compared.bound)
    if outcome.unrecorded is not None:
        yield f"{what}, replayed", outcome.unrecorded.message


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
