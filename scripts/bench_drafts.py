"""Measures what a draft model or a head gains: with it and without, a step each in turns.

Model and draft have random weights, so their guesses would never be right. So both are made to say
a given text: all of their work is done, then the text's token gets the highest logit; the draft's
is right as often as `--right` says. The model has the shape of Qwen3-0.6B, or fewer layers or
tokens; the draft has 4 layers of 512. With `--head` the model is in MiMo's form and its head
guesses; what that takes of a prompt is told first. The time counts from the first token to the
last. Where the machine does other things too, measure with `--processor`.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import statistics
import time
from collections.abc import Mapping
from collections.abc import Sequence as Listing

from appliance.compiler import open_artifact
from appliance.config import EngineSettings, Layout
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.guessing.draft_model import DraftModel, DraftRunner
from appliance.engine.guessing.guesser import Guesser
from appliance.engine.guessing.head import Head
from appliance.engine.guessing.head_runner import HeadRunner
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.native_runner import Step
from appliance.engine.sampling import SamplingParams
from appliance.engine.slot_pool import Array
from appliance.model_store import ModelStore
from appliance.scheduler import Move, Plan, PrefillChunk, Sequence
from appliance.trust.node_key import NodePublicKey
from scripts.bench_engine import HOME, SHAPE
from tests.fakes.checkpoints import write_mimo, write_qwen3
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


def open_model(layers: int, vocab: int, *, head: bool) -> ChatModel:
    """The model with its draft or head, compiled; made now if it is not there."""
    root = HOME / f"node-{'head' if head else 'draft'}-{layers}-{vocab}"
    if not (root / ".done").exists():
        shutil.rmtree(root, ignore_errors=True)
        own = SHAPE | {"layers": layers, "vocab": vocab}
        write, small = (write_mimo if head else write_qwen3), None
        large = write(root / "large", dtype="bfloat16", **own)  # type: ignore[operator]
        if not head:
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


class RecitingHead(HeadRunner):
    """The same for a head, which is told whose guesses are wanted before it runs."""

    def __init__(self, runner: HeadRunner, texts: dict[int, Text], right: float) -> None:
        self._runner = runner
        self._texts = texts
        self._right = right
        self._chance = random.Random(1)
        self.sequences: Mapping[int, Sequence] = {}

    def move(self, move: Move) -> None:
        self._runner.move(move)

    def run(self, step: Step, states: Array) -> tuple[Array, Array]:
        logits, following = self._runner.run(step, states)
        for row, (slot, start, count) in enumerate(step.spans if step.rows else ()):
            text = self._texts.get(self.sequences[slot].tokens[0], [])
            wrong = self._chance.random() >= self._right
            logits[row, (text + [0] * 16)[start + count + 1 - PROMPT] ^ wrong] = 1e9
        return logits, following


class KnownHead(Head):
    """Tells its runner whose guesses are wanted."""

    def guess(self, sequences: Mapping[int, Sequence], width: int) -> dict[int, tuple[int, ...]]:
        assert isinstance(self._runner, RecitingHead)
        self._runner.sequences = sequences
        return super().guess(sequences, width)


def share_of_prompts(model: ChatModel, count: int, rounds: int) -> float:
    """What a head takes of the time of a prompt of so many tokens, as a part of the rest."""
    asking, runner = model.engine._guessing.asking, model.engine._runner
    assert asking is not None
    shares = []
    for _ in range(rounds + 1):
        plan = Plan(prefills=(PrefillChunk(Sequence([7] * count), 0, 0, count),))
        asking.model.forget()
        start = Clock.now()
        runner.run(plan)
        between = Clock.now()
        asking.model.observe(plan)
        shares.append((Clock.now() - between) / (between - start))
    return statistics.median(shares[1:])


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


def stand_in(known: Guesser, texts: dict[int, Text], right: float) -> Guesser:
    """Does all that `known` does, and is right so often."""
    if isinstance(known, Head):
        runner = RecitingHead(known._runner, texts, right)
        return KnownHead(runner, known._states, slots=SLOTS, capacity=CAPACITY)
    assert isinstance(known, DraftModel)
    return DraftModel(
        Reciting(known._runner, texts, right), slots=SLOTS, capacity=CAPACITY,
        vocab_size=known._vocab_size, gathered=known._gathered,
    )  # fmt: skip


def engine_of(model: ChatModel, texts: dict[int, Text], right: float | None) -> LLMEngine:
    """With its draft model, right so often; None: without."""
    asking = model.engine._guessing.asking
    assert asking is not None
    draft = None if right is None else stand_in(asking.model, texts, right)
    return LLMEngine(
        Reciting(model.engine._runner, texts),  # type: ignore[arg-type]
        model.tokenizer, model.prompting,
        vocab_size=model.engine._vocab_size, slots=SLOTS, capacity=CAPACITY,
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
    parser.add_argument("--head", action="store_true", help="a head, not a draft model")
    options = parser.parse_args()
    Clock.threads = int(options.processor)
    models = [open_model(options.layers, options.vocab, head=options.head) for _ in range(2)]
    if options.head:
        share = share_of_prompts(models[0], CAPACITY // 2, options.rounds)
        print(
            f"of a prompt of {CAPACITY // 2} tokens the head takes {share:.1%} of the model's time"
        )
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
