"""Measures what the endpoint costs; --help says how much of it."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import uvloop

from bench_overhead import null


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-overhead", description=__doc__)
    parser.add_argument("--callers", type=int, default=16, help="requests at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    options = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="overhead") as directory,
        null.node(Path(directory)) as (shim, port, secret),
    ):
        work = null.rounds(shim, port, secret, options.callers, options.seconds, options.rounds)
        null.show(uvloop.run(work), options.callers)


if __name__ == "__main__":
    main()
