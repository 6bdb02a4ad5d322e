"""`scripts/gpu-check`: what this machine's GPU serves, how exactly, and how fast beside a peer.

Builds a bundle of a published shape with random weights, compiles it for the fastest provider
there is, compares the golden prompt's logits with the processor's, and measures the engine in
turns with transformers' continuous batching on the same card. Says plainly which provider ran
and why no faster one did. Without a GPU it does the same on the processor, with --tiny.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

from bench_peers.work import REPOSITORY, PeerError, say
from gpu_check import page
from gpu_check.checkpoint import SHAPES
from gpu_check.node import Node
from gpu_check.page import Measured
from gpu_check.worker import Worker
from gpu_check.workloads import FIRST, STREAMS, Workload

WORK = REPOSITORY / ".build/gpu"
RELEASE = WORK / "release"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="may be repeated")
    parser.add_argument(
        "--tiny", action="store_true", help="try the script out; no page is written"
    )
    parser.add_argument("--grade", default="fp16", help="of the bundle's weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wanted", type=int, default=128, help="new tokens of each sequence")
    parser.add_argument("--streams", type=int, default=max(w.streams for w in STREAMS))
    parser.add_argument("--release", type=Path, default=RELEASE, help="with venv and venv-cuda13")
    parser.add_argument("--peer-python", type=Path, help="an interpreter with torch for CUDA")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--keep", action="store_true", help="leave the nodes where they are")
    parser.add_argument("--out", type=Path, help="the figures as JSON, too")
    options = parser.parse_args()
    shapes = ["tiny"] if options.tiny else options.shape or ["qwen3-0.6b", "qwen3-8b"]
    results: list[Measured] = []
    for name in shapes:
        _measure(SHAPES[name].name, options, results)
    print(page.write(results))


def _write(results: list[Measured], options: argparse.Namespace) -> None:
    """What there is so far: a card is often lent for a time, and the time ends."""
    if options.out:
        options.out.write_text(json.dumps([result.plain() for result in results], indent=1))
    if not options.tiny and all(result.on_gpu for result in results):
        (REPOSITORY / "docs/benchmarks-gpu.md").write_text(page.write(results))


def _measure(name: str, options: argparse.Namespace, results: list[Measured]) -> None:
    say(f"{name}: preparing")
    node = Node(options.work / name)
    checkpoint = node.write(SHAPES[name])
    release = options.release
    python = release / "venv/bin/python"
    starting = _peer(options, checkpoint, node.layout.root)
    bundle = node.add(checkpoint, name, options.grade)
    peer, refusal = _ready(starting)
    shutil.rmtree(checkpoint)
    node.compile(bundle, python)
    ours = _ours(release, node.layout.root, name)
    say(f"{name}: {ours.facts['provider']} serves; {'; '.join(ours.facts['reasons'])}")
    measured = Measured(name, options.grade, node.seconds, ours.facts, peer and peer.facts, refusal)
    results.append(measured)
    chosen = [load for load in STREAMS if load.streams <= options.streams]
    workloads = [FIRST, *(replace(load, wanted=options.wanted) for load in chosen)]
    for workload in workloads:
        for turn in range(options.rounds + 1):
            _turn(measured, workload, turn, ours, peer)
        _write(results, options)
    for worker in (ours, peer):
        if worker is not None:
            worker.close()
    if not options.keep:
        shutil.rmtree(node.layout.root)


def _ours(release: Path, root: Path, name: str) -> Worker:
    """The engine, in the interpreter that the model was compiled for."""
    for venv in ("venv-cuda13", "venv"):
        python = release / venv / "bin/python"
        if not python.exists():
            continue
        try:
            worker = Worker(python, "gpu_check.ours", [str(root), name], root / f"{venv}.log")
            worker.wait()
            return worker
        except PeerError as error:
            say(f"{venv}: {error}")
    raise SystemExit("error: the engine did not start with either interpreter")


def _peer(options: argparse.Namespace, checkpoint: Path, root: Path) -> Worker:
    """transformers, which loads the model while the bundle is built."""
    python = options.peer_python or options.release / "venv/bin/python"
    return Worker(python, "gpu_check.peer", [str(checkpoint)], root / "peer.log")


def _ready(worker: Worker) -> tuple[Worker | None, str]:
    """A worker that answers, or why it does not."""
    try:
        worker.wait()
    except PeerError as error:
        say(f"transformers cannot be measured: {error}")
        return None, str(error)
    return worker, ""


def _turn(
    measured: Measured, workload: Workload, turn: int, ours: Worker, peer: Worker | None
) -> None:
    """Both engines, one after the other; the first turn warms up and does not count."""
    for side, worker in (("ours", ours), ("peer", peer)):
        if worker is None:
            continue
        seconds = worker.run(workload, turn)
        say(f"turn {turn}, {workload.streams} x {workload.wanted}: {side} {seconds:.3f} s")
        if turn:
            measured.seconds.setdefault((side, workload.streams, workload.wanted), []).append(
                seconds
            )


if __name__ == "__main__":
    main()
