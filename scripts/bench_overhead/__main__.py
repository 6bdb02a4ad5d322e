"""Measures what the endpoint costs; --help says how much of it."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import uvloop

from bench_overhead import null, stack


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-overhead", description=__doc__)
    parser.add_argument("what", nargs="*", choices=["null", "stack"], metavar="WHAT",
                        help="null: over an engine that computes nothing; stack: beside the engine"
                        " alone, with a model; both by default")  # fmt: skip
    parser.add_argument("--callers", type=int, default=16, help="requests at once over null")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=stack.SINGLES,
                        help="single requests in a round beside the engine alone")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of null")
    parser.add_argument("--node", type=Path, help="root of a node with a compiled chat model")
    parser.add_argument("--model", default="bench", help="its name")
    options = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f}", flush=True)
    if "null" in options.what or not options.what:
        over_null(options.callers, options.seconds, options.rounds)
    if "stack" in options.what or not options.what:
        beside_the_engine(
            options.node or stack.made(), options.model, options.rounds, options.singles
        )


def over_null(callers: int, seconds: float, rounds: int) -> None:
    for together in null.TOGETHER:
        with (
            tempfile.TemporaryDirectory(prefix="overhead") as directory,
            null.node(Path(directory), together) as (shim, port, secret),
        ):
            work = null.rounds(shim, port, secret, callers, seconds, rounds)
            null.show(uvloop.run(work), callers, together)


def beside_the_engine(root: Path, model: str, rounds: int, singles: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="overhead") as logs,
        stack.pair(root, model, Path(logs)) as sides,
    ):
        load = stack.Load([sides.alone, sides.engine, sides.shim])
        stack.show(*stack.rounds(sides, rounds, singles, stack.Texts(time.time_ns())))
        print(load.words())


if __name__ == "__main__":
    main()
