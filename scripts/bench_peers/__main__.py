"""Prepares everybody, measures in interleaved rounds, prints and writes the table.

A peer that cannot be had, or that fails at a workload, leaves its place empty with the reason;
it does not end the run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from appliance.errors import ApplianceError
from bench_peers import checkpoint, workloads
from bench_peers.appliance_node import ApplianceNode
from bench_peers.llama import LlamaServer
from bench_peers.openvino_genai_peer import OpenVino
from bench_peers.table import put_into, table_of
from bench_peers.work import REPOSITORY, WORK, PeerError, kept, machine_words, say
from bench_peers.workloads import MEMORY, Figures, Row, Workload
from installer.checkpoint.quantize import SCHEMES

PAGE = REPOSITORY / "docs/benchmarks.md"
NAMES = (ApplianceNode.name, LlamaServer.name, OpenVino.name)
GRADES = tuple(SCHEMES)


class Peer(Protocol):
    """One of those measured."""

    name: str
    version: str

    def prepare(self) -> None: ...
    def start(self) -> None: ...
    def measure(self, workload: Workload) -> Figures: ...
    def remark(self) -> str: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def resident_bytes(self) -> int: ...
    def stop(self) -> None: ...


Rounds = dict[str, dict[str, list[float]]]
"""Peer -> row -> its figure in each round."""


def main() -> None:
    options = options_of(sys.argv[1:])
    # Ends like Ctrl-C, so that no peer is left behind with its threads stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shape = checkpoint.TINY if options.tiny else checkpoint.FULL
    work = workloads.TINY if options.tiny else workloads.FULL
    WORK.mkdir(parents=True, exist_ok=True)
    model = kept(f"checkpoint-{shape.name}", lambda to: checkpoint.make_checkpoint(shape, to))
    everybody: list[Peer] = [
        ApplianceNode(shape, model, options.grade),
        LlamaServer(shape, model, jobs=options.jobs),
        OpenVino(shape, model),
    ]
    reasons: dict[str, str] = {}
    peers = [peer for peer in everybody if peer.name in options.only]
    ready = [peer for peer in peers if _prepared(peer, reasons)]
    if options.prepare:
        sys.exit(1 if reasons else 0)
    remarks: list[str] = []
    try:
        running = [peer for peer in ready if _started(peer, reasons)]
        rounds = _rounds(running, work, options.rounds, reasons)
        remarks = [f"{peer.name}: {peer.remark()}" for peer in running if peer.remark()]
    finally:
        for peer in ready:
            peer.stop()
    rows = [*(row for item in work for row in item.rows), MEMORY]
    block = _block(rows, peers, rounds, options.rounds)
    block += _footnotes(remarks, reasons)
    print(f"\n{block}")
    _keep(rounds, reasons, peers)
    if not options.tiny and not options.no_page:
        put_into(PAGE, block)
        say(f"wrote the table into {PAGE.relative_to(REPOSITORY)}")


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everybody is measured")
    parser.add_argument("--grade", choices=GRADES, default="int4", help="of our bundle")
    parser.add_argument("--only", default=",".join(NAMES), help="names, separated by commas")
    parser.add_argument("--jobs", type=int, default=2, help="at once when llama.cpp is built")
    parser.add_argument("--prepare", action="store_true", help="build and convert, measure nothing")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script out")
    parser.add_argument("--no-page", action="store_true", help="leave docs/benchmarks.md as it is")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    unknown = set(options.only) - set(NAMES)
    if unknown:
        parser.error(f"--only knows {', '.join(NAMES)}, not {', '.join(sorted(unknown))}")
    return options


def _prepared(peer: Peer, reasons: dict[str, str]) -> bool:
    try:
        peer.prepare()
    except (PeerError, ApplianceError) as error:
        _give_up(peer, error, reasons)
        return False
    return True


def _started(peer: Peer, reasons: dict[str, str]) -> bool:
    """Start `peer`, and stop its threads at once: the others start undisturbed."""
    say(f"starting {peer.name}")
    try:
        peer.start()
    except (PeerError, ApplianceError) as error:
        _give_up(peer, error, reasons)
        return False
    peer.pause()
    return True


def _rounds(
    peers: Sequence[Peer], work: Sequence[Workload], count: int, reasons: dict[str, str]
) -> Rounds:
    rounds: Rounds = defaultdict(lambda: defaultdict(list))
    given_up: set[tuple[str, str]] = set()
    for number in range(1, count + 1):
        for workload in work:
            for peer in peers:
                if (peer.name, workload.name) in given_up:
                    continue
                say(f"round {number} of {count}: {workload.name}: {peer.name}")
                try:
                    figures = _measured(peer, workload)
                except PeerError as error:
                    given_up.add((peer.name, workload.name))
                    reasons[f"{peer.name}, {workload.name}"] = str(error)
                    say(f"{peer.name} fails at {workload.name}: {error}")
                    continue
                for row, value in figures.items():
                    rounds[peer.name][row].append(value)
    return rounds


def _measured(peer: Peer, workload: Workload) -> Figures:
    peer.resume()
    try:
        figures = dict(peer.measure(workload))
        figures[MEMORY.name] = peer.resident_bytes() / 1024**3
        return figures
    except (OSError, AssertionError, ApplianceError) as error:
        raise PeerError(f"{type(error).__name__}: {error}") from error
    finally:
        peer.pause()


def _give_up(peer: Peer, error: Exception, reasons: dict[str, str]) -> None:
    reasons[peer.name] = str(error)
    say(f"{peer.name} is left out: {error}")


def _block(
    rows: Sequence[Row],
    peers: Sequence[Peer],
    rounds: Rounds,
    count: int,
) -> str:
    medians = {
        peer: {
            # Memory is what it came to; it never shrinks.
            row: max(values) if row == MEMORY.name else statistics.median(values)
            for row, values in figures.items()
        }
        for peer, figures in rounds.items()
    }
    lines = [
        f"`{command()}`, {datetime.now(UTC):%Y-%m-%d}, medians of {count} interleaved rounds.",
        f"{machine_words()}.",
        "",
        *(f"- {peer.name}: {peer.version}" for peer in peers),
        "",
        table_of(rows, [peer.name for peer in peers], medians),
    ]
    return "\n".join(lines)


def _footnotes(remarks: Sequence[str], reasons: dict[str, str]) -> str:
    empty = [f"empty: {name}: {' '.join(why.split())[:200]}" for name, why in reasons.items()]
    notes = [f"- {note}" for note in (*remarks, *empty)]
    return "\n\n" + "\n".join(notes) if notes else ""


def command() -> str:
    """The command line that made the table."""
    return shlex.join(["./scripts/bench", *sys.argv[1:]])


def _keep(rounds: Rounds, reasons: dict[str, str], peers: Sequence[Peer]) -> Path:
    """Every round's figures, for who wants to see how they are spread."""
    path = WORK / f"results/{time.strftime('%Y%m%dT%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "command": command(),
        "machine": machine_words(),
        "versions": {peer.name: peer.version for peer in peers},
        "rounds": rounds,
        "empty": reasons,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    say(f"kept every round's figures in .build/bench/{path.relative_to(WORK)}")
    return path


if __name__ == "__main__":
    main()
