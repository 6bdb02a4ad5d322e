"""`scripts/gpu-check`: what this machine's GPU serves, how exactly, and how fast beside a peer.

Builds a bundle of a published shape with random weights, compiles it for the fastest provider
there is, compares the golden prompt's logits with the processor's, measures what kinds of steps
cost, and the engine in turns with transformers' continuous batching on the same card; at last
whether two models say beside each other what they say alone, and the golden prompt of tiny models
in every grade, by every graph that a GPU may be given. Says plainly which provider ran and why no
faster one did. What matters most comes first; with --minutes it ends in time, and what was not
measured is named. Without a GPU it does the same on the processor, with --tiny. --pack writes what
a GPU machine without a network needs for it, --render makes the page of figures that came back.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance.errors import ApplianceError
from bench_peers.work import REPOSITORY, say
from gpu_check import page
from gpu_check.budget import Budget, OutOfTimeError
from gpu_check.checkpoint import SHAPES
from gpu_check.grades import TRIALS, measure_grade
from gpu_check.measuring import ATTENTION, COMPANY, LATE, Measuring, Setting, ShapeError, kinds_of
from gpu_check.results import Run
from gpu_check.workloads import MANY, Workload, core, many

WORK = REPOSITORY / ".build/gpu"
RELEASE = WORK / "release"
_HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.pack is not None:
        _pack(options)
    elif options.render:
        _render()
    else:
        _check(options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", action="append", choices=SHAPES, help="may be repeated")
    parser.add_argument(
        "--tiny", action="store_true", help="try the script out; no page is written"
    )
    parser.add_argument("--minutes", type=float, help="end after so many")
    parser.add_argument("--grade", default="fp16", help="of the bundle's weights")
    parser.add_argument("--rounds", type=int, default=3, help="turns that count, at most")
    parser.add_argument("--wanted", type=int, default=128, help="new tokens of each sequence")
    parser.add_argument("--streams", type=int, default=MANY, help="at most")
    parser.add_argument("--release", type=_path, default=RELEASE, help="with venv and venv-cuda13")
    parser.add_argument("--peer-python", type=_path, help="an interpreter with torch for CUDA")
    parser.add_argument("--work", type=_path, default=WORK)
    parser.add_argument("--keep", action="store_true", help="leave the nodes where they are")
    parser.add_argument("--out", type=_path, help="a folder for figures and page, too")
    parser.add_argument("--render", action="store_true", help="only write the page anew")
    parser.add_argument("--pack", type=_path, metavar="DIR", help="for a machine without a network")
    parser.add_argument("--part-mib", type=int, default=60, help="largest part of a pack")
    parser.add_argument("--python", default=_HERE, help="pack: the machine's version of Python")
    parser.add_argument("--code-only", action="store_true", help="pack: replace the code alone")
    parser.add_argument("--no-gpu", action="store_true", help="pack: without the GPU's runtime")
    parser.add_argument(
        "--no-cuda-libraries", action="store_true",
        help="pack: the machine has CUDA's libraries in its own Python",
    )  # fmt: skip
    return parser.parse_args(arguments)


def _path(text: str) -> Path:
    """Absolute, since the compiler's child starts elsewhere; an environment's Python is a link."""
    return Path(text).absolute()


def _check(options: argparse.Namespace) -> None:
    names = ["tiny"] if options.tiny else options.shape or ["qwen3-0.6b", "qwen3-8b"]
    run = Run(datetime.datetime.now(datetime.UTC).date().isoformat())
    setting = Setting(
        run=run,
        budget=Budget(options.minutes),
        grade=options.grade,
        rounds=options.rounds,
        release=options.release,
        peer_python=options.peer_python,
        work=options.work,
        written=lambda: _write(run, options),
    )
    first, last = core(options.wanted, options.streams), many(options.wanted, options.streams)
    planned = [load.words for load in (*first, *last)] + [kinds_of(a) for a in ATTENTION]
    shapes = [
        Measuring(SHAPES[name], setting, planned + [COMPANY] * (name == names[0])) for name in names
    ]
    try:
        with setting.budget.running():
            _measure(shapes, first, last)
            _measure_grades(setting)
    except OutOfTimeError:
        say("the time is over")
    finally:
        _write(run, options)
        for shape in shapes:
            shape.end(keep=options.keep)
    print(page.section(run))


def _measure(shapes: list[Measuring], first: list[Workload], last: list[Workload]) -> None:
    """Everything, in the order of what it is worth."""
    ready = []
    for shape in shapes:
        latest = shape is shapes[-1]
        try:
            shape.prepare(again=not latest)
            if shape is shapes[0]:
                shape.measure_kinds()
            _measure_speeds(shape, first + last * latest)
        except ShapeError:
            shape.close()
            continue
        ready.append(shape)
    for shape in ready:
        if shape is not shapes[-1] and last:
            try:
                _measure_speeds(shape, last)
            except ShapeError:
                shape.close()
    for shape in ready:
        if shape is shapes[0]:
            shape.measure_company()
        else:
            shape.measure_kinds()


def _measure_grades(setting: Setting) -> None:
    """The golden prompt in every grade, where a GPU computes."""
    run = setting.run
    if not run.on_gpu:
        return
    run.missing |= {trial.words: LATE for trial in TRIALS}
    for trial in TRIALS:
        try:
            for what, found in measure_grade(setting.work / "grade", setting.release, trial):
                if isinstance(found, str):
                    run.missing[f"golden prompt, {what}"] = found
                else:
                    run.golden[what] = list(found)
            del run.missing[trial.words]
        except ApplianceError as error:
            run.missing[trial.words] = error.message
        setting.written()


def _measure_speeds(shape: Measuring, loads: list[Workload]) -> None:
    """Raises ShapeError."""
    shape.open()
    for workload in loads:
        shape.measure(workload)
    shape.close()


def _write(run: Run, options: argparse.Namespace) -> None:
    """What there is so far: a card is often lent for a time, and the time ends."""
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        run.write(options.out / f"{run.name}.json")
    if run.on_gpu and not options.tiny:
        page.FIGURES.mkdir(exist_ok=True)
        run.write(page.FIGURES / f"{run.name}.json")
        _render()
        if options.out:
            (options.out / page.PAGE.name).write_bytes(page.PAGE.read_bytes())


def _pack(options: argparse.Namespace) -> None:
    from gpu_check.pack import pack, pack_code

    part_bytes = options.part_mib << 20
    if options.code_only:
        pack_code(options.pack, part_bytes)
        return
    libraries = not options.no_cuda_libraries
    pack(
        *(options.pack, part_bytes, options.python),
        gpu=not options.no_gpu,
        cuda_libraries=libraries,
    )


def _render() -> None:
    runs = page.runs_in(page.FIGURES)
    page.PAGE.write_text(page.put_into(page.PAGE.read_text("utf-8"), runs), "utf-8")


if __name__ == "__main__":
    main()
