"""How the time of a decode step grows: 1 to 64 streams, 128 to 8,192 tokens of context.

    scripts/bench-load [--tokens N] [--steps N] [--grade GRADE] [--picture FILE]

The model is that of bench_engine. Streams of one length share their prompt, so it is computed
once and copied, and then each decodes on its own. Pairs whose contexts add up to more than
`--tokens` are left out: they would be measured in gigabytes of cache. Prints milliseconds a step
(median), tokens a second, and the share of the step that is not the model: scheduling, sampling
and reading the output. `--picture` writes it as SVG.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.runner import Logits, Runner
from appliance.engine.sampling import SamplingParams
from appliance.scheduler import Plan
from scripts.bench_engine import GRADES, VOCAB, open_grade

STREAMS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
SPARE = 256
"""Tokens of a slot behind the longest context."""


@dataclass(frozen=True, slots=True)
class Point:
    """Median milliseconds of a step, and the share of it that is not the model."""

    step: float
    beside: float


Points = Mapping[tuple[int, int], Point]
"""By streams and context."""


class Timed:
    """Runs a model, and adds up how long it took."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.seconds = 0.0

    def most_drafted(self, sequences: int) -> int:
        return self._runner.most_drafted(sequences)

    def interrupt(self) -> None:
        self._runner.interrupt()

    def run(self, plan: Plan) -> Logits:
        start = time.perf_counter()
        logits = self._runner.run(plan)
        self.seconds += time.perf_counter() - start
        return logits


class Bench:
    """An engine with a slot for each of the most streams."""

    def __init__(self, model: ChatModel) -> None:
        self._timed = Timed(model.engine._runner)
        self._calls = 0
        self._engine = LLMEngine(
            self._timed, model.tokenizer, model.prompting, vocab_size=VOCAB, slots=STREAMS[-1],
            capacity=model.engine.capacity, token_budget=512, max_waiting=STREAMS[-1],
            gathered=False,
        )  # fmt: skip

    def measure(self, streams: int, context: int, steps: int) -> Point:
        """Steps of so many streams around a context of so many tokens."""
        prompt = [300 + (context + 31 * index) % (VOCAB - 600) for index in range(context)]
        for _ in range(streams):
            self._calls += 1
            params = SamplingParams(temperature=0, max_tokens=SPARE)
            self._engine.add(Generation(self._calls, prompt, params, cache_namespace="bench"))
        while self._engine.waiting or self._prompts_remain():
            self._engine.step()
        took, beside = [], []
        for _ in range(steps):
            start, before = time.perf_counter(), self._timed.seconds
            self._engine.step()
            whole = time.perf_counter() - start
            took.append(1000 * whole)
            beside.append(1 - (self._timed.seconds - before) / whole)
        for call in range(self._calls - streams + 1, self._calls + 1):
            self._engine.cancel(call)
        while self._engine.has_work:
            self._engine.step()
        return Point(statistics.median(took), statistics.median(beside))

    def _prompts_remain(self) -> bool:
        """Whether the next step computes prompts: until a step gives a token to each."""
        before = self._engine.counters.generated_tokens
        self._engine.step()
        return self._engine.counters.generated_tokens - before < self._engine.running


def pairs(tokens: int) -> Iterator[tuple[int, int]]:
    for context in CONTEXTS:
        for streams in STREAMS:
            if streams * context <= tokens:
                yield streams, context


def show(points: Points) -> None:
    """The tables."""
    for title, value in (
        ("milliseconds a step", lambda n, p: f"{p.step:.1f}"),
        ("tokens/s", lambda n, p: f"{1000 * n / p.step:.0f}"),
        ("not the model, % of a step", lambda n, p: f"{100 * p.beside:.1f}"),
    ):
        print(f"\n| {title} | " + " | ".join(f"{n}" for n in STREAMS) + " |")
        print("| --- |" + " --- |" * len(STREAMS))
        for context in CONTEXTS:
            cells = [
                value(n, points[n, context]) if (n, context) in points else "" for n in STREAMS
            ]
            if any(cells):
                print(f"| {context:,} | " + " | ".join(cells) + " |")


class Picture:
    """An SVG: a line for each number of streams, both axes logarithmic."""

    WIDTH, HEIGHT = 720, 420
    LEFT, RIGHT, TOP, BOTTOM = 70, 110, 30, 60

    def __init__(self, points: Points, title: str) -> None:
        steps = [point.step for point in points.values()]
        self._decades = math.floor(math.log10(min(steps))), math.ceil(math.log10(max(steps)))
        self._title = title
        self._marks: list[str] = []
        self._frame()
        for number, streams in enumerate(STREAMS):
            line = [(c, points[streams, c].step) for c in CONTEXTS if (streams, c) in points]
            if line:
                self._line(streams, line, f"hsl({200 + 22 * number} 60% 42%)")

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {self.WIDTH} {self.HEIGHT}" xmlns="http://www.w3.org/2000/svg" '
            f'role="img" font-family="sans-serif" font-size="12"><title>{self._title}</title>'
            f'<rect width="100%" height="100%" fill="white"/>{"".join(self._marks)}</svg>\n'
        )

    def _x(self, context: float) -> float:
        share = math.log(context / CONTEXTS[0]) / math.log(CONTEXTS[-1] / CONTEXTS[0])
        return self.LEFT + share * (self.WIDTH - self.LEFT - self.RIGHT)

    def _y(self, step: float) -> float:
        first, last = self._decades
        share = (math.log10(step) - first) / (last - first)
        return self.HEIGHT - self.BOTTOM - share * (self.HEIGHT - self.BOTTOM - self.TOP)

    def _frame(self) -> None:
        """Title, grid and the numbers at it."""
        self._text(self.LEFT, 18, self._title, "start")
        end = self.WIDTH - self.RIGHT
        for decade in range(self._decades[0], self._decades[1] + 1):
            y = self._y(10.0**decade)
            self._marks.append(
                f'<line x1="{self.LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            )
            self._text(self.LEFT - 8, y + 4, f"{10**decade:g} ms", "end")
        for context in CONTEXTS:
            self._text(self._x(context), self.HEIGHT - 36, f"{context:,}", "middle")
        middle = (self.LEFT + end) / 2
        self._text(middle, self.HEIGHT - 12, "tokens of context of each stream", "middle")

    def _line(self, streams: int, line: Sequence[tuple[int, float]], colour: str) -> None:
        places = [f"{self._x(context):.1f},{self._y(step):.1f}" for context, step in line]
        self._marks.append(
            f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" '
            'stroke-width="2"/>'
        )
        context, step = line[-1]
        words = f"{streams} stream" + "s" * (streams > 1)
        self._text(self._x(context) + 8, self._y(step) + 4, words, "start", colour)

    def _text(self, x: float, y: float, words: str, anchor: str, colour: str = "#333") -> None:
        self._marks.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--grade", default="w8a8", choices=GRADES)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    model = open_grade(given.grade, slots=STREAMS[-1], capacity=CONTEXTS[-1] + SPARE)
    bench = Bench(model)
    points = {}
    for streams, context in pairs(given.tokens):
        points[streams, context] = point = bench.measure(streams, context, given.steps)
        print(f"{streams} x {context}: {point.step:.1f} ms, {100 * point.beside:.1f} %", flush=True)
    show(points)
    if given.picture is not None:
        given.picture.write_text(str(Picture(points, f"Time of a decode step, {given.grade}")))
    model.close()


if __name__ == "__main__":
    main()
