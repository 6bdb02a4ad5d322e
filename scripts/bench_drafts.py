"""Measures what a draft model gains: with it and without, a step each in turns.

Model and draft have random weights, so their guesses would never be right. So both are made to say
a given text: all of their work is done, then the text's token gets the highest logit; the draft's
is right as often as `--right` says. The model has the shape of Qwen3-0.6B, or fewer layers or
tokens; the draft has 4 layers of 512. The time counts from the first token to the last. Where the
machine does other things too, measure with `--processor`.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
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
from scripts.bench_engine import HOME, SHAPE
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode

PROMPT, LENGTH = 64, 96
CAPACITY, SLOTS = 512, 16
SMALL = {
    "layers": 4,
    "hidden": 512,
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 64,
    "intermediate": 1536,
}
Text = list[int]


class Clock:
    """Seconds: of the wall, or of the only thread that computes."""

    threads = 0

    @classmethod
    def now(cls) -> float:
        return time.thread_time() if cls.threads else time.perf_counter()


def open_model(layers: int, vocab: int) -> ChatModel:
    """The model with its draft, compiled; made now if it is not there."""
    root = HOME / f"node-draft-{layers}-{vocab}"
    if not (root / ".done").exists():
        shutil.rmtree(root, ignore_errors=True)
        own = SHAPE | {"layers": layers, "vocab": vocab}
        large = write_qwen3(root / "large", dtype="bfloat16", **own)  # type: ignore[arg-type]
        small = write_qwen3(root / "small", dtype="bfloat16", **(own | SMALL))  # type: ignore[arg-type]
        EngineNode(root).add(large, name="bench", precision="w8a8", draft=small)
        (root / ".done").touch()
    layout = Layout(root)
    bundle = ModelStore(layout.models).get("bench")
    key = NodePublicKey.load(layout.node / "node.pub")
    artifact = open_artifact(layout.artifacts, bundle.digest, key)
    settings = EngineSettings(
        max_sequences=SLOTS, max_context=CAPACITY, cache_bytes=1 << 34, threads=Clock.threads
    )
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
            first = max(0, len(sequence.tokens) - PROMPT)
            for token in (text + [0] * 16)[first : first + count]:
                wrong = self._chance.random() >= self._right
                logits[row, token ^ wrong] = 1e9
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
            start = Clock.now()
            if engine.has_work:
                engine.step()
            seconds[index] += Clock.now() - start
    return [len(generations) * (LENGTH - 1) / spent for spent in seconds]


def engine_of(model: ChatModel, texts: dict[int, Text], right: float | None) -> LLMEngine:
    """With its draft model, right so often; None: without."""
    asking, draft = model.engine._guessing.asking, None
    if right is not None:
        assert asking is not None
        runner = Reciting(asking.model._runner, texts, right)
        draft = DraftModel(
            runner, slots=SLOTS, capacity=CAPACITY, vocab_size=asking.model._vocab_size,
            gathered=asking.model._gathered,
        )  # fmt: skip
    return LLMEngine(
        Reciting(model.engine._runner, texts),  # type: ignore[arg-type]
        model.tokenizer, model.prompting,
        vocab_size=asking.model._vocab_size if asking else 0, slots=SLOTS, capacity=CAPACITY,
        token_budget=512, max_waiting=0, draft_tokens=8, draft=draft,
        gathered=model.engine._make_scheduler.keywords["gathered"], clock=Clock.now,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--right", type=float, nargs="*", default=[0.9, 0.7, 0.5, 0.0])
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--layers", type=int, default=SHAPE["layers"])
    parser.add_argument("--vocab", type=int, default=SHAPE["vocab"])
    parser.add_argument(
        "--processor", action="store_true", help="one thread, and count its processor time"
    )
    options = parser.parse_args()
    Clock.threads = int(options.processor)
    models = [open_model(options.layers, options.vocab) for _ in range(2)]
    params = SamplingParams(temperature=0, max_tokens=LENGTH)
    chance = random.Random(0)

    def words(count: int) -> Text:
        return [chance.randrange(300, options.vocab - 300) for _ in range(count)]

    print(f"{'right':>6}{'streams':>8}{'with':>8}{'without':>8}{'ratio':>8}{'accepted':>16}")
    for right, streams in itertools.product(options.right, options.streams):
        texts: dict[int, Text] = {}
        engines = [engine_of(models[0], texts, right), engine_of(models[1], texts, None)]
        pairs = []
        for _ in range(options.rounds):
            prompts = [words(PROMPT) for _ in range(streams)]
            texts.update({prompt[0]: words(LENGTH) for prompt in prompts})
            pairs.append(speeds(engines, [Generation(i, p, params) for i, p in enumerate(prompts)]))
        on, off = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
        counters = engines[0].counters
        accepted = f"{counters.accepted_tokens} of {counters.drafted_tokens}"
        print(f"{right:6.1f}{streams:8}{on:8.1f}{off:8.1f}{ratio:8.2f}{accepted:>16}", flush=True)
    for model in models:
        model.close()


if __name__ == "__main__":
    main()
