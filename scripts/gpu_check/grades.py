"""The golden prompt of a tiny model in every grade, by every graph that a GPU may be given.

A node takes the first graph that fits its memory, so a large card never tries the others. Here each
is compiled and compared with the processor, by the compiler's own processes, as on a node.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from appliance.compiler.child import run_compiler
from appliance.compiler.memory import on_gpu
from appliance.compiler.record import Outcome
from appliance.errors import ApplianceError
from appliance.model_store import StoredBundle
from bench_peers.checkpoint import TINY
from bench_peers.work import say
from gpu_check.node import Node
from installer.checkpoint.quantize import Precision

GRADES: tuple[Precision, ...] = ("fp8", "w8a8", "int4", "int8", "fp16", "fp32")
"""What is least known, first."""
ADAPTED: Precision = "w8a8"
"""The grade that is tried with room for adapters, too: it has both of the graphs."""
Found = tuple[str, tuple[float, float] | str]
"""Grade and what its weights are on the GPU; error and what was allowed, or why there is none."""


def words_of(grade: str, *, adapters: bool = False) -> str:
    """What a grade's part of a run is called where it was not measured."""
    return f"golden prompt, {grade}{' with adapters' * adapters}"


def measure_grade(
    root: Path, release: Path, grade: Precision, *, adapters: bool = False
) -> Iterator[Found]:
    """Each graph of a bundle in `grade`; `root` is there only meanwhile.

    Raises ApplianceError if the bundle cannot be built, or the processor does not compute it.
    """
    node = Node(root)
    try:
        bundle = node.add(node.write(TINY), TINY.name, grade, adapters=adapters)
        golden = _folder(root / "golden")
        run_compiler(release / "venv/bin/python", ["--golden", str(bundle.directory), str(golden)])
        on_device = release / "venv-cuda13/bin/python"
        for graph in bundle.manifest.variants("cuda"):
            precision = on_gpu(bundle.manifest, graph)
            say(f"{words_of(grade, adapters=adapters)}, as {precision}")
            yield (
                f"{grade} as {precision}{' with adapters' * adapters}",
                _compared(on_device, bundle, golden, _folder(root / precision), precision),
            )
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _compared(
    python: Path, bundle: StoredBundle, golden: Path, out: Path, precision: str
) -> tuple[float, float] | str:
    paths = map(str, (bundle.directory, out, golden))
    try:
        said = run_compiler(python, ["--provider", "cuda", *paths, precision])
    except ApplianceError as error:
        return error.message
    compared = msgspec.json.decode(said, type=Outcome).compared
    return compared.error, compared.bound


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
