"""A draft model changes no token, whatever it guesses, and is there for whoever decodes.

Its models are real: `partly` has the first of its own two layers to guess for it, `twin` is that
model and guesses itself, `pair` has another one, on two graphs each, with a longer table of tokens
and a shorter context. Time is reckoned, so that guesses seem worth it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.compiler import open_artifact
from appliance.config import EngineSettings, Layout
from appliance.engine import asking, running
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.guessing.draft_model import DraftModel, DraftRunner
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.loaded import open_model
from appliance.engine.output import Finished, FinishReason
from appliance.engine.sampling import SamplingParams
from appliance.engine.slot_pool import Array
from appliance.model_store import ModelStore
from appliance.native import library
from appliance.scheduler import Plan, Sequence
from appliance.trust.node_key import NodePublicKey
from tests.conftest import BuildOnce
from tests.engine.guessing.test_speculation import (
    assert_churn_changes_nothing,
    crowd,
    run,
    tokens,
)
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode

Open = Callable[..., ChatModel]
TARGET, DRAFT = 1.0, 0.02
"""Reckoned seconds of a run."""


class Timed:
    """A runner beside a clock that it moves on; remembers what failed to be told."""

    def __init__(self, runner: DraftRunner, clock: list[float], seconds: float) -> None:
        self._runner = runner
        self._clock = clock
        self._seconds = seconds
        self.fails = False

    def run(self, plan: Plan) -> Array:
        if self.fails:
            raise RuntimeError("out of order")
        self._clock[0] += self._seconds
        return self._runner.run(plan)

    def most_drafted(self, sequences: int) -> int:
        return self._runner.most_drafted(sequences)  # type: ignore[attr-defined, no-any-return]

    def interrupt(self) -> None:
        self._runner.interrupt()  # type: ignore[attr-defined]


def build_node(root: Path) -> None:
    node, whole = EngineNode(root), write_qwen3(root / "whole")
    first = write_qwen3(root / "first", layers=1)
    other = write_qwen3(root / "other", layers=1, intermediate=90, vocab=544, context=96)
    node.add(whole, name="partly", precision="w8a8", draft=first)
    pair = write_qwen3(root / "pair", intermediate=90)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pair / name, other / name)
    node.add(pair, name="pair", precision="w8a8", draft=other)


@pytest.fixture(scope="module")
def root(build_once: BuildOnce) -> Path:
    return build_once("draft-node", build_node)


def opened(root: Path, name: str, budget: CacheBudget, **changes: int) -> ChatModel:
    layout = Layout(root)
    bundle = ModelStore(layout.models).get(name)
    artifact = open_artifact(
        layout.artifacts, bundle.digest, NodePublicKey.load(layout.node / "node.pub")
    )
    given = {"threads": 1, "max_context": 128, "max_sequences": 4} | changes
    model = open_model(bundle, artifact, EngineSettings(**given), budget)
    assert isinstance(model, ChatModel)
    return model


@pytest.fixture(scope="module")
def open_it(root: Path) -> Iterator[Open]:
    """Opens a model; a run of its draft takes a fiftieth of its own's, by its clock."""
    with ExitStack() as stack:

        def open_one(name: str, **changes: int) -> ChatModel:
            twin = name == "twin"
            model = opened(root, "partly" if twin else name, CacheBudget(64 << 20), **changes)
            stack.callback(model.close)
            engine, clock = model.engine, [0.0]
            engine._runner = Timed(engine._runner, clock, TARGET)  # type: ignore[arg-type]
            engine._clock = lambda: clock[0]
            if engine._guessing.asking is not None:
                small = small_of(model)
                if twin:
                    other = opened(root, "partly", CacheBudget(64 << 20), draft_tokens=0)
                    stack.callback(other.close)
                    small._runner = other.engine._runner  # type: ignore[assignment]
                small._runner = Timed(small._runner, clock, DRAFT)
            return model

        yield open_one


def small_of(model: ChatModel) -> DraftModel:
    assert model.engine._guessing.asking is not None
    small = model.engine._guessing.asking.model
    assert isinstance(small, DraftModel)
    return small


@pytest.fixture(scope="module")
def partly(open_it: Open) -> tuple[LLMEngine, LLMEngine]:
    """The same model with its draft model and without any guess."""
    return open_it("partly").engine, open_it("partly", draft_tokens=0).engine


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_in_a_churning_batch_every_sequence_is_what_it_is_without_a_draft_model(
    partly: tuple[LLMEngine, LLMEngine], data: st.DataObject
) -> None:
    assert_churn_changes_nothing(*partly, data)


def several(temperature: float, count: int = 6, length: int = 50) -> list[Generation]:
    return [
        Generation(
            call,
            [3 + call, 50 * call + 7, 11, 99, 200 + call],
            SamplingParams(temperature=temperature, seed=call, max_tokens=length),
            cache_namespace="all",
        )
        for call in range(count)
    ]


@pytest.mark.parametrize("name", ["partly", "pair", "twin"])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_more_sequences_than_slots_are_what_they_are_without_and_some_guesses_are_right(
    open_it: Open, name: str, temperature: float
) -> None:
    guessing, plain = open_it(name).engine, open_it(name, draft_tokens=0).engine
    requests = several(temperature)
    assert run(guessing, *requests) == run(plain, *requests)
    counters = guessing.counters
    assert counters.drafted_tokens > 0
    if temperature == 0:
        assert counters.accepted_tokens > 0
        assert counters.steps < plain.counters.steps
    if name != "twin":
        assert counters.accepted_tokens < counters.drafted_tokens


def test_a_model_that_guesses_for_itself_is_always_right(
    open_it: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_it("twin").engine
    monkeypatch.setattr(running, "_drafters", lambda *_: [])
    run(engine, *several(0, count=1, length=100))
    counters = engine.counters
    assert counters.generated_tokens == 100
    assert counters.accepted_tokens > 60
    if library.supported():  # else pieces of prompts and of answers are rounded differently
        assert counters.accepted_tokens == counters.drafted_tokens


@pytest.mark.skipif(not library.supported(), reason="two graphs round a near tie either way")
def test_what_it_guesses_does_not_depend_on_what_happened_in_its_slots(
    open_it: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_HOPELESS", 0.0)
    model, cold = open_it("partly"), small_of(open_it("partly"))
    model.engine._guessing.speculation.gain_of_asking = (  # type: ignore[method-assign]
        lambda batch, widest, asked, seconds: (2.0, min(4, widest))
    )
    small, guessed = small_of(model), dict[tuple[int, ...], tuple[int, ...]]()

    def remembering(sequences: Mapping[int, Sequence], width: int) -> dict[int, tuple[int, ...]]:
        answers = DraftModel.guess(small, sequences, width)
        guessed.update({(*each.tokens,): answers[slot] for slot, each in sequences.items()})
        return answers

    small.guess = remembering  # type: ignore[method-assign]
    crowd(model.engine)
    assert len(guessed) > 20
    for said, answer in guessed.items():
        cold.forget()
        sequence = Sequence(said)
        assert cold.behind(0, sequence) == len(said)
        cold.catch_up({0: sequence}, len(said))
        assert cold.guess({0: sequence}, len(answer))[0] == answer


def test_a_conversation_that_goes_on_is_not_computed_again(open_it: Open) -> None:
    model = open_it("twin")
    params = SamplingParams(temperature=0, max_tokens=40)
    first = Generation(0, list(range(100, 140)), params, cache_namespace="a")
    said = tokens(run(model.engine, first)[0, 0])
    small, caught = small_of(model), list[int]()

    def counting(sequences: Mapping[int, Sequence], most: int) -> int:
        done = DraftModel.catch_up(small, sequences, most)
        caught.append(done)
        return done

    small.catch_up = counting  # type: ignore[method-assign]
    then = Generation(1, [*first.prompt, *said, 7, 8, 9], params, cache_namespace="a")
    (events,) = run(model.engine, then).values()
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.cached_tokens >= 64
    assert sum(caught) < 40


def test_another_namespace_finds_nothing(open_it: Open) -> None:
    small = small_of(open_it("twin"))
    one, other = (Sequence([5, 6, 7, 8], namespace=name) for name in "ab")
    assert small.behind(0, one) == 4
    small.catch_up({0: one}, 10)
    assert small.behind(0, one) == 1
    assert small.behind(0, other) == 4


def test_who_is_too_long_or_says_what_it_does_not_know_is_not_guessed_for(open_it: Open) -> None:
    small = small_of(open_it("pair"))
    assert small.behind(0, Sequence([5] * 95)) == 95
    assert small.behind(0, Sequence([5] * 96)) is None, "its context has 96 tokens"
    assert small.behind(0, Sequence([5, 511])) == 2
    assert small.behind(0, Sequence([5, 512])) is None, "the bundle's model has 512 tokens"


def test_beyond_its_context_the_answer_goes_on_without_it(open_it: Open) -> None:
    guessing, plain = open_it("pair").engine, open_it("pair", draft_tokens=0).engine
    requests = [Generation(call, [3 + call] * 60, SamplingParams(temperature=0.7, seed=call))
                for call in range(2)]  # fmt: skip
    assert run(guessing, *requests) == run(plain, *requests)


def test_after_a_step_that_failed_nothing_in_its_slots_is_believed(open_it: Open) -> None:
    model = open_it("twin")
    engine, small = model.engine, small_of(model)
    wanted = run(engine, *several(0, count=2))
    engine.add(Generation(7, [1, 2, 3], SamplingParams(temperature=0, max_tokens=30)))
    for _ in range(3):
        engine.step()
    assert isinstance(small._runner, Timed)
    small._runner.fails = True
    with pytest.raises(RuntimeError, match="out of order"):
        run(engine)
    (failed,) = engine.fail_all()
    assert isinstance(failed.event, Finished)
    assert failed.event.reason is FinishReason.ERROR
    small._runner.fails = False
    assert all(not small._slots[slot].tokens for slot in range(4))
    assert run(engine, *several(0, count=2)) == wanted


@pytest.mark.parametrize("name", ["partly", "pair"])
def test_its_cache_is_in_the_budget_to_the_byte(root: Path, name: str) -> None:
    budget = CacheBudget(1 << 20)
    model = opened(root, name, budget)
    with_draft = 2 * 2 * 2 * 16 + 2 * 1 * 2 * 16
    assert model.cache_shape.token_bytes == with_draft
    assert budget.total - budget.free == model.cache_shape.total_bytes
    pools = [model.engine._runner, small_of(model)._runner]
    arrays = [a for runner in pools for a in (*runner._pool.keys, *runner._pool.values)]  # type: ignore[attr-defined]
    assert sum(array.nbytes for array in arrays) == model.cache_shape.total_bytes
    model.close()
    assert budget.free == budget.total


def test_without_guesses_it_takes_nothing_and_says_so(root: Path) -> None:
    model = opened(root, "partly", CacheBudget(1 << 20), draft_tokens=0)
    assert model.cache_shape.token_bytes == 2 * 2 * 2 * 16
    assert model.engine._guessing.asking is None
    assert model.draft_unused == "its draft model is not used: engine.draft_tokens is 0"
    model.close()
    model = opened(root, "partly", CacheBudget(1 << 20))
    assert model.draft_unused == ""
    model.close()
