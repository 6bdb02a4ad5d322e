"""Measures what a draft model gains: with it and without, a step each in turns.

Model and draft have random weights, so their guesses would never be right. So both are made to say
a given text: all of their work is done, then the text's token gets the highest logit; the draft's
is another one as often as `--right` says. The model is the one of bench_engine, the draft has
8 layers of 512 (about a tenth of its weights). The time counts from the first token to the last.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence as Listing

from appliance.compiler import open_artifact
from appliance.config import EngineSettings, Layout
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.draft_model import DraftModel, DraftRunner
from appliance.engine.generation import Generation
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.loaded import ChatModel
from appliance.engine.sampling import SamplingParams
from appliance.engine.slot_pool import Array
from appliance.model_store import ModelStore
from appliance.scheduler import Plan
from appliance.trust.node_key import NodePublicKey
from scripts.bench_engine import CAPACITY, HOME, SLOTS, VOCAB, open_grade
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode

PROMPT, LENGTH = 64, 96
Text = list[int]


def open_draft() -> ChatModel:
    """The small model, compiled; made now if it is not there."""
    root = HOME / "node-draft"
    if not (root / ".done").exists():
        small = write_qwen3(
            HOME / "checkpoint-draft", dtype="bfloat16", layers=8, hidden=512, heads=8, kv_heads=4,
            head_dim=64, intermediate=1536, vocab=VOCAB, context=40_960,
        )  # fmt: skip
        EngineNode(root).add(small, name="draft", precision="w8a8")
        (root / ".done").touch()
    layout = Layout(root)
    bundle = ModelStore(layout.models).get("draft")
    key = NodePublicKey.load(layout.node / "node.pub")
    artifact = open_artifact(layout.artifacts, bundle.digest, key)
    settings = EngineSettings(max_sequences=SLOTS, max_context=CAPACITY, cache_bytes=1 << 36)
    return ChatModel(bundle, artifact, settings, CacheBudget.from_settings(settings))


class Reciting:
    """Runs a model, and makes it say the texts, which begin behind prompts of `PROMPT` tokens."""

    def __init__(self, runner: DraftRunner, texts: dict[int, Text], right: float = 1.0) -> None:
        self._runner = runner
        self._texts = texts
        self._right = right
        self._chance = random.Random(1)

    def most_drafted(self, sequences: int) -> int:
        return self._runner.most_drafted(sequences)  # type: ignore[attr-defined, no-any-return]

    def interrupt(self) -> None:
        self._runner.interrupt()  # type: ignore[attr-defined]

    def run(self, plan: Plan) -> Array:
        logits, row = self._runner.run(plan), 0
        for sequence, count in zip(plan.sampled, plan.rows, strict=True):
            text = self._texts.get(sequence.tokens[0], [])
            first = len(sequence.tokens) - PROMPT
            for token in (text + [0] * 16)[max(0, first) :][:count]:
                wrong = self._chance.random() >= self._right
                logits[row, (token + wrong) % VOCAB] = 1e9
                row += 1
        return logits


def speeds(engines: Listing[LLMEngine], generations: Listing[Generation]) -> list[float]:
    """Tokens a second of each engine, all under the same load."""
    seconds = [0.0 for _ in engines]
    for engine in engines:
        for generation in generations:
            engine.add(generation)
        before = engine.counters.generated_tokens
        while engine.counters.generated_tokens < before + len(generations):
            engine.step()
    while any(engine.has_work for engine in engines):
        for index, engine in enumerate(engines):
            start = time.perf_counter()
            if engine.has_work:
                engine.step()
            seconds[index] += time.perf_counter() - start
    return [len(generations) * (LENGTH - 1) / spent for spent in seconds]


def engine_of(model: ChatModel, texts: dict[int, Text], draft: DraftModel | None) -> LLMEngine:
    runner = Reciting(model.engine._runner, texts)  # type: ignore[arg-type]
    return LLMEngine(
        runner, model.tokenizer, model.prompting, vocab_size=VOCAB, slots=SLOTS,
        capacity=model.engine.capacity, token_budget=512, max_waiting=0,
        draft_tokens=8, draft=draft,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--right", type=float, nargs="*", default=[0.9, 0.7, 0.5, 0.0])
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4, 8])
    options = parser.parse_args()
    models, small = [open_grade("w8a8") for _ in range(2)], open_draft()
    params = SamplingParams(temperature=0, max_tokens=LENGTH)
    chance = random.Random(0)
    print(f"{'right':>6}{'streams':>8}{'with':>8}{'without':>8}{'ratio':>8}{'accepted':>14}")
    for right in options.right:
        for streams in options.streams:
            texts: dict[int, Text] = {}
            runner = Reciting(small.engine._runner, texts, right)  # type: ignore[arg-type]
            draft = DraftModel(runner, slots=SLOTS, capacity=CAPACITY, vocab_size=VOCAB)
            engines = [engine_of(models[0], texts, draft), engine_of(models[1], texts, None)]
            pairs = []
            for _ in range(options.rounds):
                calls = []
                for call in range(streams):
                    prompt = [chance.randrange(300, VOCAB - 300) for _ in range(PROMPT)]
                    said = [chance.randrange(300, VOCAB - 300) for _ in range(LENGTH)]
                    texts[prompt[0]] = said
                    calls.append(Generation(call, prompt, params))
                pairs.append(speeds(engines, calls))
            counters = engines[0].counters
            on, off = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
            accepted = f"{counters.accepted_tokens} of {counters.drafted_tokens}"
            print(
                f"{right:6.1f}{streams:8}{on:8.1f}{off:8.1f}{ratio:8.2f}{accepted:>16}", flush=True
            )
    for model in (*models, small):
        model.close()


if __name__ == "__main__":
    main()
