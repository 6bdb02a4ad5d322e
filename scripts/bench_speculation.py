"""Measures what speculation gains and costs for one stream, with and without, a step each in turns.

The model of bench_engine has random weights and would never repeat a prompt. So it is made to say
given texts: all of its work is done, then the text's token gets the highest logit. The time counts
from the first token to the last.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.guessing.drafting import Prediction
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.model_runner import ModelRunner
from appliance.engine.sampling import SamplingParams
from appliance.engine.slot_pool import Array
from appliance.scheduler import Plan
from scripts.bench_engine import GRADES, VOCAB, open_grade

LENGTH = 160
Text = list[int]


class Reciting:
    """Runs a model, and makes it say `text`."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.text: Text = []

    def most_drafted(self, sequences: int) -> int:
        return self._runner.most_drafted(sequences)

    def interrupt(self) -> None:
        self._runner.interrupt()

    def run(self, plan: Plan) -> Array:
        logits, row = self._runner.run(plan), 0
        for sequence, count in zip(plan.sampled, plan.rows, strict=True):
            for token in (self.text + [0] * count)[sequence.generated :][:count]:
                logits[row, token] = 1e9
                row += 1
        return logits


def texts() -> dict[str, tuple[Text, Text, Prediction | None]]:
    """Prompt, text and prediction of each case."""
    chance = random.Random(0)
    passage = [chance.randrange(300, VOCAB - 300) for _ in range(256)]
    edited = list(passage[:LENGTH])
    for place in range(20, LENGTH, 40):
        edited[place : place + 2] = [chance.randrange(300, VOCAB - 300) for _ in range(3)]
    fresh = [chance.randrange(300, VOCAB - 300) for _ in range(LENGTH)]
    few = [300 + chance.randrange(12) for _ in range(LENGTH + 256)]
    return {
        "repeats its prompt, an edit every 40 tokens": (passage, edited[:LENGTH], None),
        "as predicted, an edit every 40 tokens": (fresh, edited[:LENGTH], Prediction(passage)),
        "nothing repeats": (passage, fresh, None),
        "of 12 words in random order": (few[LENGTH:], few[:LENGTH], None),
        "nothing repeats, predicted wrongly": (fresh, fresh[::-1], Prediction(passage)),
    }


def speeds(engines: list[LLMEngine], generation: Generation) -> list[float]:
    """Tokens a second of each engine, all under the same load."""
    seconds = [0.0 for _ in engines]
    for engine in engines:
        before = engine.counters.generated_tokens
        engine.add(generation)
        while engine.counters.generated_tokens == before:
            engine.step()
    while any(engine.has_work for engine in engines):
        for index, engine in enumerate(engines):
            start = time.perf_counter()
            if engine.has_work:
                engine.step()
            seconds[index] += time.perf_counter() - start
    return [(LENGTH - 1) / spent for spent in seconds]


def engine_of(model: ChatModel, draft_tokens: int) -> tuple[LLMEngine, Reciting]:
    runner = Reciting(model.engine._runner)  # type: ignore[arg-type]
    engine = LLMEngine(
        runner, model.tokenizer, model.prompting, vocab_size=VOCAB, slots=1,
        capacity=model.engine.capacity, token_budget=512, max_waiting=0, draft_tokens=draft_tokens,
    )  # fmt: skip
    return engine, runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grade", nargs="?", default="w8a8", choices=GRADES)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    models = [open_grade(options.grade) for _ in range(2)]
    opened = [engine_of(model, most) for model, most in zip(models, (8, 0), strict=True)]
    engines = [engine for engine, _ in opened]
    params = SamplingParams(temperature=0, max_tokens=LENGTH)
    print(f"{'tokens/s, one stream':46}{'on':>8}{'off':>8}{'ratio':>8}{'accepted':>12}")
    for name, (prompt, text, prediction) in texts().items():
        for _, runner in opened:
            runner.text = text
        generation = Generation(0, prompt, params, prediction=prediction)
        counters = engines[0].counters
        before = counters.accepted_tokens, counters.drafted_tokens
        pairs = [speeds(engines, generation) for _ in range(options.rounds)]
        on, off = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
        accepted = counters.accepted_tokens - before[0]
        drafted = counters.drafted_tokens - before[1]
        print(f"{name:46}{on:8.1f}{off:8.1f}{ratio:8.2f}{accepted:6} of {drafted}", flush=True)
    for model in models:
        model.close()


if __name__ == "__main__":
    main()
