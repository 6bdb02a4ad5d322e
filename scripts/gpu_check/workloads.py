"""What is measured, and the lines in which a worker is asked for it and answers."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, order=True)
class Workload:
    """Greedy sequences that start together: `given` prompt tokens, `wanted` new ones each."""

    streams: int
    given: int
    wanted: int

    def prompts(self, vocab: int, seed: int) -> Iterator[list[int]]:
        """Prompts that share no beginning; each seed gives others, so that no cache helps."""
        random = np.random.default_rng(seed)
        for _ in range(self.streams):
            yield random.integers(300, vocab - 300, self.given).tolist()

    @property
    def tokens(self) -> int:
        return self.streams * self.wanted

    @property
    def words(self) -> str:
        """What it is called where it was not measured."""
        if self == FIRST:
            return "time to first token"
        return f"{self.streams} x {self.wanted} out"


FIRST = Workload(1, 256, 1)
"""Time to the first token: there is only one."""
STREAMS = (1, 8, 32)
MANY = 128
"""Streams that are measured last: they say least about a small installation."""


def core(wanted: int, most: int) -> list[Workload]:
    """What matters most, that first; `most` streams at most."""
    return [*(Workload(n, FIRST.given, wanted) for n in STREAMS if n <= most), FIRST]


def many(wanted: int, most: int) -> list[Workload]:
    """What can wait."""
    return [Workload(MANY, FIRST.given, wanted)] if most >= MANY else []


def serve(run: Callable[[Workload, int], float], **facts: object) -> None:
    """Be a worker: say `facts`, then answer each line of standard input with seconds."""

    def answer(asked: dict[str, Any]) -> Mapping[str, object]:
        seed = asked.pop("seed")
        return {"seconds": run(Workload(**asked), seed)}

    answer_all(answer, **facts)


def answer_all(answer: Callable[[dict[str, Any]], Mapping[str, object]], **facts: object) -> None:
    """Say `facts`, then answer each line of standard input."""
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def question(workload: Workload, seed: int) -> dict[str, object]:
    return asdict(workload) | {"seed": seed}


def median(values: list[float]) -> float:
    return statistics.median(values)
