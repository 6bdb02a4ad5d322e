"""Measures structured output on a compiled model, in the engine's own process.

Answers in a form are computed with forced runs and without, a step each in turns, so that both
see the same load. Then: what a mask costs, and how long the steps of another stream take at most
while schemas are compiled. On a machine that does other things too, measure with `--processor`:
tokens for each second of processor time, times the cores. The model is the one that scripts/bench
made: random weights, and a tokenizer of 152,000 letter groups, in which a name has more tokens
than in a trained one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from appliance.compiler import open_artifact
from appliance.config import EngineSettings, Layout
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.grammar.constraint import CompiledGrammar
from appliance.engine.grammar.turn import Structured, Turn
from appliance.engine.machine import physical_cores
from appliance.engine.sampling import SamplingParams
from appliance.model_store import ModelStore
from appliance.trust.node_key import NodePublicKey
from scripts.bench_engine import Clock

HOME = Path(__file__).resolve().parent.parent / ".build/bench"
PROMPT = list(range(300, 428))
DIGITS = {"type": "integer", "minimum": 0, "maximum": 9999}
CHOICE = {"enum": ["accepted", "rejected", "deferred"]}
LONG = (
    "customer_identification_number", "date_of_last_successful_payment", "outstanding_balance",
    "preferred_contact_channel", "number_of_days_since_registration", "current_account_status",
)  # fmt: skip


def form(*names: str) -> Turn:
    properties = {name: (DIGITS, CHOICE)[place % 2] for place, name in enumerate(names)}
    schema = {"type": "object", "properties": properties, "required": list(names)}
    return schema_turn(schema | {"additionalProperties": False})


def schema_turn(schema: object) -> Turn:
    return Turn(Structured("json_schema", json.dumps(schema)))


FORMS = {
    "6 long names, short values": form(*LONG),
    "12 names of one letter": form(*"abcdefghijkl"),
    "a text of 200 characters": schema_turn({"type": "string", "minLength": 200, "maxLength": 220}),
}
HEAVY: tuple[Callable[[int], object], ...] = (
    lambda n: {"enum": [f"value {n} {number}" for number in range(9000)]},
    lambda n: {"type": "object", "properties": {f"k{n}x{i}": DIGITS for i in range(2000)}},
    lambda n: {"type": "string", "pattern": f"^(a{{{n + 1},40}}b?){{1,60}}$"},
)


def open_node(root: Path, drafted: int) -> ChatModel:
    layout = Layout(root)
    (name,) = ModelStore(layout.models).active()
    bundle = ModelStore(layout.models).get(name)
    key = NodePublicKey.load(layout.node / "node.pub")
    artifact = open_artifact(layout.artifacts, bundle.digest, key)
    settings = EngineSettings(
        max_sequences=4, max_context=1024, cache_bytes=1 << 32, draft_tokens=drafted
    )
    start = time.perf_counter()
    model = ChatModel(bundle, artifact, settings, CacheBudget.from_settings(settings))
    print(f"loaded in {time.perf_counter() - start:.2f} s", flush=True)
    return model


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: of each model its seconds and its steps; its tokens, and those forced."""

    seconds: list[float]
    steps: list[int]
    tokens: int
    forced: int


def answer(models: list[ChatModel], turn: Turn, seed: int) -> Answered:
    """Counted from the first token, which the prompt's step has."""
    engines, forced = [model.engine for model in models], models[0].engine.counters.forced_tokens
    ends = frozenset(models[0].generation.eos_token_ids)
    params = SamplingParams(temperature=1, seed=seed, max_tokens=400, end_ids=ends)
    for model in models:
        grammar = model.grammars.compiled(turn).result()
        model.engine.add(Generation(0, PROMPT, params, grammar=grammar))
        model.engine.step()
    seconds, generated = [0.0, 0.0], engines[0].counters.generated_tokens
    before = [engine.counters.steps for engine in engines]
    while any(engine.has_work for engine in engines):
        for place, engine in enumerate(engines):
            start = Clock.now()
            if engine.has_work:
                engine.step()
            seconds[place] += Clock.now() - start
    counters = engines[0].counters
    return Answered(
        seconds,
        [engine.counters.steps - steps for engine, steps in zip(engines, before, strict=True)],
        counters.generated_tokens - generated,
        counters.forced_tokens - forced,
    )


def mask_cost(grammar: CompiledGrammar, seed: int) -> list[float]:
    """Milliseconds of each mask on a random way through a grammar."""
    chance, matcher = np.random.default_rng(seed), grammar._matcher.deep_copy()
    times: list[float] = []
    while not matcher.is_stopped() and len(times) < 300:
        start = time.thread_time()
        found = grammar.next(matcher)
        times.append((time.thread_time() - start) * 1000)
        assert found is not None
        for token in found.forced or (int(chance.choice(found.mask.nonzero()[0])),):
            matcher.consume_token(token)
    return times


def longest_steps(model: ChatModel, turns: list[Turn]) -> list[float]:
    """Milliseconds of the steps of a plain stream while `turns` are compiled."""
    engine, times = model.engine, []
    engine.add(Generation(0, PROMPT, SamplingParams(temperature=0, max_tokens=120)))
    engine.step()
    for turn in turns:
        model.grammars.compiled(turn)
    while engine.has_work:
        start = time.perf_counter()
        engine.step()
        times.append((time.perf_counter() - start) * 1000)
    return sorted(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", type=Path, help="root of a node with one chat model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processor", action="store_true", help="count processor time")
    options = parser.parse_args()
    Clock.cores = physical_cores() if options.processor else 0
    made = sorted(HOME.glob("node-qwen3-0.6b-w8a8-*"), key=lambda path: path.stat().st_mtime)
    root = options.node or made[-1]
    models = [open_node(root, drafted) for drafted in (8, 0)]
    print(f"{'tokens/s, one stream':28}{'on':>6}{'off':>6}{'ratio':>7}   forced; steps on and off")
    for name, turn in FORMS.items():
        runs = [answer(models, turn, seed) for seed in range(options.rounds)]
        on, off = (statistics.median(r.tokens / r.seconds[place] for r in runs) for place in (0, 1))
        ratio = statistics.median(r.seconds[1] / r.seconds[0] for r in runs)
        forced, tokens = sum(r.forced for r in runs), sum(r.tokens for r in runs)
        steps = " and ".join(str(sum(r.steps[place] for r in runs)) for place in (0, 1))
        print(
            f"{name:28}{on:6.1f}{off:6.1f}{ratio:7.2f}   {forced} of {tokens}; {steps}", flush=True
        )
    for name, turn in FORMS.items():
        grammar = models[0].grammars.compiled(turn).result()
        times = [t for seed in range(options.rounds) for t in mask_cost(grammar, seed)]
        print(f"a mask, ms: {name:30}{statistics.median(times):8.3f}{max(times):8.2f} at most")
    print("a stream's steps, ms, median and longest")
    for number in range(options.rounds):
        heavy = [schema_turn(make(number)) for make in HEAVY]
        alone, beside = (longest_steps(models[1], turns) for turns in ([], heavy))
        print(
            f"alone {statistics.median(alone):.0f} {alone[-1]:.0f},"
            f" while schemas compile {statistics.median(beside):.0f} {beside[-1]:.0f}",
            flush=True,
        )
    for model in models:
        model.close()


if __name__ == "__main__":
    main()
