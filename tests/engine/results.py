"""What comes out of an engine that is stepped in a test."""

from __future__ import annotations

import random
from collections.abc import Sequence

from appliance.engine.generation import Generation
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.output import Delta, Finished


class Results:
    """What came out of an engine, by call and sequence."""

    def __init__(self) -> None:
        self.deltas: dict[tuple[int, int], list[Delta]] = {}
        self.ends: dict[tuple[int, int], Finished] = {}

    def step(self, engine: LLMEngine) -> None:
        for output in engine.step():
            key = (output.call, output.event.index)
            assert key not in self.ends, "nothing comes after the end"
            if isinstance(output.event, Finished):
                self.ends[key] = output.event
            else:
                self.deltas.setdefault(key, []).append(output.event)
        engine.check_integrity()

    def tokens(self, call: int, index: int = 0) -> list[int]:
        return [i for delta in self.deltas.get((call, index), ()) for i in delta.token_ids]

    def text(self, call: int, index: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas[call, index])


def churn(engine: LLMEngine, requests: Sequence[Generation], chance: random.Random) -> Results:
    """All requests, joining and leaving; a fifth is cancelled on the way."""
    together, waiting = Results(), list(requests)
    cancelled = {request.call for request in requests if chance.random() < 0.2}
    while waiting or engine.has_work:
        for _ in range(min(len(waiting), chance.randint(0, 3))):
            engine.add(waiting.pop())
        for call in cancelled:
            if together.deltas.get((call, 0)) and chance.random() < 0.5:
                engine.cancel(call)
        together.step(engine)
    return together


def run(engine: LLMEngine, *generations: Generation) -> Results:
    results = Results()
    for generation in generations:
        engine.add(generation)
    while engine.has_work:
        results.step(engine)
    return results
