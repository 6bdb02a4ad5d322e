"""What scheduling and sampling cost a step, beside the model: 64 sequences, no model at all.

    scripts/bench-scheduler [--slots N] [--vocab N] [--steps N]

Prints microseconds a step, median and 99th percentile, for each part:
    schedule   a decode step of the scheduler: plan, commit, append
    churn      the same with one sequence leaving and one joining a step, 2,048 shared tokens each
    match      looking up a prompt of 2,048 tokens that every slot holds, and one that none does
    greedy     sampling for all sequences, argmax over the vocabulary
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from appliance.engine.sampler import Sampler
from appliance.engine.sampling import SamplingParams
from appliance.scheduler import Plan, Scheduler, Sequence
from appliance.scheduler.slots import SlotTable

SYSTEM = list(range(2048))


def measure(name: str, work: Callable[[], object], times: int) -> None:
    """Run `work` so many times and print a line."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        took.append((time.perf_counter() - start) * 1e6)
    late = statistics.quantiles(took, n=100)[98]
    print(f"{name:<16} median {statistics.median(took):9.1f} us   99 % {late:9.1f} us")


class Batch:
    """A scheduler whose slots are all taken by sequences that share `SYSTEM`."""

    def __init__(self, slots: int, *, churn: bool) -> None:
        self._churn = churn
        self._scheduler = Scheduler(
            slots=slots, capacity=1 << 20, token_budget=slots + 512, max_waiting=slots
        )
        self._running: list[Sequence] = []
        self._names = iter(range(1 << 20, 1 << 30))
        for _ in range(slots):
            self._join()
        plan = self._step()
        while len(plan.decodes) < slots:
            plan = self._step()

    def step(self) -> Plan:
        """One step; in a churn the oldest leaves and another comes."""
        if self._churn:
            self._scheduler.remove(self._running.pop(0))
            self._join()
        return self._step()

    def _step(self) -> Plan:
        plan = self._scheduler.schedule()
        self._scheduler.commit(plan)
        for sequence in plan.sampled:
            self._scheduler.append(sequence, 7)
        return plan

    def _join(self) -> None:
        prompt = [*SYSTEM, *(next(self._names) for _ in range(16))]
        sequence = Sequence(prompt, namespace="bench", caller=f"caller {len(self._running) % 8}")
        self._scheduler.add([sequence])
        self._running.append(sequence)


def full_table(slots: int) -> SlotTable:
    """Slots that hold `SYSTEM` and one more block each."""
    table = SlotTable(slots, 32)
    for number in range(slots):
        sequence = Sequence([*SYSTEM, *[number] * 64], namespace="bench")
        table.claim(sequence, None)
        table.advance(sequence, len(sequence.tokens))
        table.promote(sequence)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args()
    measure("schedule", Batch(given.slots, churn=False).step, given.steps)
    measure("churn", Batch(given.slots, churn=True).step, given.steps)
    table = full_table(given.slots)
    for name, prompt in (("hit", [*SYSTEM, -1]), ("miss", [-1, *SYSTEM])):
        measure(
            f"match {name}",
            lambda prompt=prompt: table.match(Sequence(prompt, namespace="bench")),  # type: ignore[misc]
            given.steps,
        )
    logits = np.random.default_rng(0).normal(size=(given.slots, given.vocab)).astype(np.float32)
    samplers = [Sampler(SamplingParams(temperature=0), [1]) for _ in logits]
    measure(
        "greedy",
        lambda: [s.sample(row) for s, row in zip(samplers, logits, strict=True)],
        max(2, given.steps // 10),
    )


if __name__ == "__main__":
    main()
