"""Soaks a node: --help says how long, with how much, and where the report goes."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.soak import picture, report
from tests.soak.ground import build_models
from tests.soak.soak import Course, soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two faults")
    parser.add_argument("--rate", type=float, default=8.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", action="append", default=[], help="only these, in this order")
    parser.add_argument("--models", type=Path, help="where the models are, or are to be")
    parser.add_argument(
        "--out", type=Path, default=Path("soak"), help="for the report, .json, .svg"
    )
    options = parser.parse_args()
    course = Course(
        seconds=options.minutes * 60,
        every=options.every,
        rate=options.rate,
        seed=options.seed,
        faults=options.fault,
        judge_growth=options.minutes >= 30,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soaked") as directory:
        models = options.models or Path(directory) / "models"
        if not models.exists():
            models.mkdir(parents=True)
            build_models(models)
        outcome = soak(models, course, _say)
    options.out.with_suffix(".json").write_text(report.document(outcome))
    options.out.with_suffix(".svg").write_text(picture.draw(outcome))
    for line in report.lines(outcome):
        print(line, flush=True)
    return 1 if outcome.faults else 0


def _say(words: str) -> None:
    print(time.strftime("%H:%M:%S"), words, flush=True)


if __name__ == "__main__":
    sys.exit(main())
