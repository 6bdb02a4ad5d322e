"""What is measured, and the lines in which a worker is asked for it and answers."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

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


FIRST = Workload(1, 256, 1)
"""Time to the first token: there is only one."""
STREAMS = tuple(Workload(streams, 256, 128) for streams in (1, 8, 32, 128))


def serve(run: Callable[[Workload, int], float], **facts: object) -> None:
    """Be a worker: say `facts`, then answer each line of standard input with seconds."""
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        seed = asked.pop("seed")
        print(json.dumps({"seconds": run(Workload(**asked), seed)}), flush=True)


def question(workload: Workload, seed: int) -> str:
    return json.dumps(asdict(workload) | {"seed": seed})


def median(values: list[float]) -> float:
    return statistics.median(values)
