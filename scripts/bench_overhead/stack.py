"""The whole stack (endpoint, audit log, gRPC, engine daemon) beside the engine alone.

Both have the same model open, each in its own processes, and are asked the same in turns: whoever
is not asked computes nothing. Prompts are texts of which no two begin alike, answers greedy and of
a fixed length.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import string
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from appliance.config import Layout
from bench_overhead.caller import ask_once, encoded
from bench_overhead.daemons import Daemon, daemon, prepare

MOST_SLOWER = 0.05
"""The goal: of the throughput."""
MOST_LATER = 0.003
"""The goal, in seconds: of the first token, at the median."""
STREAMS, WORDS, TOKENS = 16, 12, 64
SINGLES = 16
"""Single requests in a round. Each pair scatters by 5 ms, so a hundred tell half a millisecond."""
CAPACITY = 2304
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Found:
    """Seconds of one side: of each batch, of the processor for each, and to the first token of each
    single request."""

    batches: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Of the processor, all threads, for each batch; the caller's are in neither."""
    firsts: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Pair:
    """The two sides, running."""

    alone: Daemon
    engine: Daemon
    shim: Daemon
    port: int
    secret: str
    model: str

    def alone_seconds(self) -> float:
        """Of the processor, so far."""
        return self.alone.processor_seconds

    def stack_seconds(self) -> float:
        """Of the processor, so far."""
        return self.engine.processor_seconds + self.shim.processor_seconds

    def ask_alone(self, texts: Sequence[str], tokens: int) -> tuple[float, list[float]]:
        answer = json.loads(self.alone.answer(json.dumps({"texts": texts, "tokens": tokens})))
        return answer["seconds"], answer["firsts"]

    def ask_stack(self, texts: Sequence[str], tokens: int) -> tuple[float, list[float]]:
        requests = [encoded(self.port, self.secret, self._body(text, tokens)) for text in texts]
        return uvloop.run(ask_once(self.port, requests))

    def _body(self, text: str, tokens: int) -> dict[str, object]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
            "max_tokens": tokens,
        }


@contextmanager
def pair(root: Path, model: str, logs: Path) -> Iterator[Pair]:
    """Both sides over the node at `root`."""
    cache = f"cache_bytes = {1 << 34}\n"
    settings = f"[engine]\nmax_sequences = {STREAMS}\nmax_context = {CAPACITY}\n{cache}"
    port, secret = prepare(root, settings)
    Layout(root).run.mkdir(parents=True, exist_ok=True)
    processors = sorted(os.sched_getaffinity(0))

    with (
        daemon(
            "appliance.engine_daemon", "--root", root,
            processors=processors, errors=logs / "engine.log",
        ) as engine,
        daemon(
            "appliance.shim", "--root", root, processors=processors, errors=logs / "shim.log"
        ) as shim,
        daemon(
            "bench_overhead.alone", root, model,
            processors=processors, errors=logs / "alone.log", answers=True,
        ) as alone,
    ):  # fmt: skip
        yield Pair(alone, engine, shim, port, secret, model)


def made() -> Path:
    """A node with the model that scripts/bench measures, built and compiled if it is not there."""
    from bench_peers import checkpoint
    from bench_peers.appliance_node import ApplianceNode
    from bench_peers.work import kept

    shape = checkpoint.FULL
    model = kept(f"checkpoint-{shape.name}", lambda to: checkpoint.make_checkpoint(shape, to))
    node = ApplianceNode(shape, model, "w8a8")
    node.prepare()
    return node.root


class Texts:
    """Prompts that nobody has seen."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def some(self, count: int, words: int = WORDS) -> list[str]:
        return [self._one(words) for _ in range(count)]

    def _one(self, words: int) -> str:
        letters = string.ascii_lowercase
        return " ".join("".join(self._random.choices(letters, k=6)) for _ in range(words))


def rounds(sides: Pair, count: int, singles: int, texts: Texts) -> tuple[Found, Found]:
    """(alone, stack): batches and single requests in turns, after one of each to warm up."""
    alone, stack = Found(), Found()
    for number in range(-1, count):
        asks = [
            (sides.ask_alone, sides.alone_seconds, alone),
            (sides.ask_stack, sides.stack_seconds, stack),
        ]
        if number % 2:
            asks.reverse()
        prompts = texts.some(STREAMS)
        for ask, used, found in asks:
            before = used()
            seconds, _ = ask(prompts, TOKENS)
            if number >= 0:
                found.batches.append(seconds)
                found.processor.append(used() - before)
        for text in texts.some(singles):
            for ask, _, found in asks:
                _, firsts = ask([text], 2)
                if number >= 0:
                    found.firsts += firsts
    return alone, stack


class Load:
    """What of the machine's processors was used from here on, and by whom."""

    def __init__(self, ours: Sequence[Daemon]) -> None:
        self._ours = ours
        self._start = time.perf_counter()
        self._busy, self._own = _busy_seconds(), self._own_seconds()

    def words(self) -> str:
        passed = time.perf_counter() - self._start
        own = (self._own_seconds() - self._own) / passed
        busy = (_busy_seconds() - self._busy) / passed
        count = len(os.sched_getaffinity(0))
        return (
            f"of {count} processors {own:.2f} were used by what was measured, "
            f"{max(0.0, busy - own):.2f} by others; load {os.getloadavg()[0]:.1f}"
        )

    def _own_seconds(self) -> float:
        times = os.times()
        return times.user + times.system + sum(one.processor_seconds for one in self._ours)


def _busy_seconds() -> float:
    fields = Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:9]
    user, nice, system, _idle, _wait, irq, softirq, _steal = map(int, fields)
    return (user + nice + system + irq + softirq) / _TICKS


def show(alone: Found, stack: Found) -> None:
    tokens = STREAMS * TOKENS
    rates = [tokens / statistics.median(found.batches) for found in (alone, stack)]
    pairs = zip(alone.batches, stack.batches, strict=True)
    slower = 1 - statistics.median(one / other for one, other in pairs)
    print(
        f"{STREAMS} streams: {rates[0]:.1f} tokens/s alone, {rates[1]:.1f} through the stack; "
        f"pair by pair {slower:+.1%} of it is lost (goal: at most {MOST_SLOWER:.0%})"
    )
    costs = [statistics.median(found.processor) / tokens * 1e3 for found in (alone, stack)]
    print(
        f"of the processor a token takes {costs[0]:.2f} ms alone, {costs[1]:.2f} ms through the "
        f"stack: {costs[1] / costs[0] - 1:+.1%}"
    )
    medians = [statistics.median(found.firsts) for found in (alone, stack)]
    added = (s - a for a, s in zip(alone.firsts, stack.firsts, strict=True))
    print(
        f"first token, one request: p50 {medians[0] * 1e3:.1f} ms alone, "
        f"{medians[1] * 1e3:.1f} ms through the stack; pair by pair "
        f"{statistics.median(added) * 1e3:+.1f} ms (goal: at most {MOST_LATER * 1e3:.0f} ms)"
    )
