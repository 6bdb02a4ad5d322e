"""A head that predicts further tokens changes no token, and guesses as if nothing had happened.

Its models are real: in `right` the next token follows from the last one alone, for the model and
for its head, in `mixed` nearly so. Time is reckoned, so that guesses seem worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from appliance.compiler import Provider
from appliance.config import EngineSettings, Layout
from appliance.engine import asking, running
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.guessing import head
from appliance.engine.guessing.guesser import why_unused
from appliance.engine.guessing.head import Head
from appliance.engine.guessing.head_runner import HeadRunner
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.native_runner import Step
from appliance.engine.output import Finished, FinishReason
from appliance.engine.sampling import SamplingParams
from appliance.engine.slot_pool import Array
from appliance.model_store import ModelStore
from appliance.native import library
from appliance.scheduler import Move, Plan, PrefillChunk, Sequence
from tests.conftest import BuildOnce
from tests.engine.guessing.test_draft_model import DRAFT, TARGET, Timed, opened, several
from tests.engine.guessing.test_speculation import (
    assert_churn_changes_nothing,
    churned,
    crowd,
    run,
    tokens,
)
from tests.fakes.checkpoints import write_mimo
from tests.fakes.engine_node import EngineNode

pytestmark = pytest.mark.skipif(not library.supported(), reason="a head has native operators")
Open = Callable[..., ChatModel]
OWN = 2 * 2 * 2 * 16
"""Bytes of a token in the model's cache; the head's one layer has half of them."""


def foreseeable(directory: Path, noise: float) -> Path:
    """A checkpoint whose layers say next to nothing, so that the last token tells the next.

    Its head finds the same by the same way: of what it reads, the state is left out.
    """
    write_mimo(directory)
    path = directory / "model.safetensors"
    weights = load_file(path)
    for name, values in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = values * np.float32(noise)
    at, hidden = "model.mtp_layers.0", weights["model.norm.weight"].shape[0]
    unit = np.eye(hidden, dtype=np.float32)
    weights[f"{at}.input_proj.weight"] = np.concatenate([noise * unit, unit], axis=1)
    weights[f"{at}.token_layernorm.weight"] = np.ones(hidden, np.float32)
    weights[f"{at}.final_layernorm.weight"] = weights["model.norm.weight"]
    save_file(
        {name: np.ascontiguousarray(v) for name, v in weights.items()}, path, {"format": "pt"}
    )
    return directory


def build_node(root: Path) -> None:
    node = EngineNode(root)
    for name, noise in (("right", 0.0), ("mixed", 0.02)):
        node.add(foreseeable(root / f"checkpoint-{name}", noise), name=name, precision="w8a8")


@pytest.fixture(scope="module")
def root(build_once: BuildOnce) -> Path:
    return build_once("head-node", build_node)


class TimedHead(HeadRunner):
    """A head's runner beside a clock that it moves on; fails if told to."""

    def __init__(self, runner: HeadRunner, clock: list[float]) -> None:
        self._runner = runner
        self._clock = clock
        self.fails = False
        self.filled = 0
        """Positions that were computed without looking at a result."""
        self.seen: list[Array] = []
        """The states that it gave out."""

    def move(self, move: Move) -> None:
        self._runner.move(move)

    def run(self, step: Step, states: Array) -> tuple[Array, Array]:
        if self.fails:
            raise RuntimeError("out of order")
        self._clock[0] += DRAFT
        self.filled += 0 if step.rows else len(step.tokens)
        logits, following = self._runner.run(step, states)
        if step.rows:
            self.seen.append(following)
        return logits, following


@pytest.fixture(scope="module")
def open_it(root: Path) -> Iterator[Open]:
    """Opens a model; a run of its head takes a fiftieth of its own's, by its clock."""
    with ExitStack() as stack:

        def open_one(name: str, **changes: int) -> ChatModel:
            model = opened(root, name, CacheBudget(64 << 20), **changes)
            stack.callback(model.close)
            engine, clock = model.engine, [0.0]
            engine._runner = Timed(engine._runner, clock, TARGET)  # type: ignore[arg-type]
            engine._clock = lambda: clock[0]
            if engine._guessing.asking is not None:
                own = head_of(model)
                own._runner = TimedHead(own._runner, clock)
            return model

        yield open_one


def head_of(model: ChatModel) -> Head:
    assert model.engine._guessing.asking is not None
    found = model.engine._guessing.asking.model
    assert isinstance(found, Head)
    return found


def timed(model: ChatModel) -> TimedHead:
    runner = head_of(model)._runner
    assert isinstance(runner, TimedHead)
    return runner


@pytest.fixture(scope="module")
def mixed(open_it: Open) -> tuple[LLMEngine, LLMEngine]:
    """The same model with its head and without any guess."""
    return open_it("mixed").engine, open_it("mixed", draft_tokens=0).engine


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_in_a_churning_batch_every_sequence_is_what_it_is_without_a_head(
    mixed: tuple[LLMEngine, LLMEngine], data: st.DataObject
) -> None:
    assert_churn_changes_nothing(*mixed, data)


@pytest.mark.parametrize("name", ["mixed", "right"])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_more_sequences_than_slots_are_what_they_are_without_and_some_guesses_are_right(
    open_it: Open, monkeypatch: pytest.MonkeyPatch, name: str, temperature: float
) -> None:
    monkeypatch.setattr(running, "_drafters", lambda *_: [])
    guessing, plain = open_it(name).engine, open_it(name, draft_tokens=0).engine
    requests = several(temperature)
    assert run(guessing, *requests) == run(plain, *requests)
    counters = guessing.counters
    assert counters.drafted_tokens > 0
    if temperature == 0:
        assert counters.accepted_tokens > 0
        assert counters.steps < plain.counters.steps
        if name == "mixed":
            assert counters.accepted_tokens < counters.drafted_tokens


def test_a_head_that_is_right_has_its_guesses_accepted(
    open_it: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_drafters", lambda *_: [])
    engine, plain = open_it("right").engine, open_it("right", draft_tokens=0).engine
    for one in (engine, plain):
        run(one, *several(0, count=1, length=100))
    counters = engine.counters
    assert counters.generated_tokens == plain.counters.generated_tokens == 100
    assert counters.accepted_tokens > 60
    assert counters.accepted_tokens > 0.9 * counters.drafted_tokens
    assert 2 * counters.steps < plain.counters.steps


Guess = tuple[tuple[int, ...], bytes]
"""The tokens, and the bits of the states that they came from."""


def guessed_by(own: Head, sequences: Mapping[int, Sequence], width: int) -> dict[int, Guess]:
    runner = own._runner
    assert isinstance(runner, TimedHead)
    runner.seen.clear()
    answers = Head.guess(own, sequences, width)
    bits = np.stack(runner.seen, axis=1)
    return {slot: (answers[slot], bits[row].tobytes()) for row, slot in enumerate(sorted(answers))}


def remember(own: Head) -> dict[tuple[int, ...], Guess]:
    """What it guesses from now on, by what was said before."""
    guessed: dict[tuple[int, ...], Guess] = {}

    def remembering(sequences: Mapping[int, Sequence], width: int) -> dict[int, tuple[int, ...]]:
        answers = guessed_by(own, sequences, width)
        guessed.update({(*each.tokens,): answers[slot] for slot, each in sequences.items()})
        return {slot: tokens for slot, (tokens, _) in answers.items()}

    own.guess = remembering  # type: ignore[method-assign]
    return guessed


def always(engine: LLMEngine, width: int) -> None:
    """Let the head be asked in every step."""
    engine._guessing.speculation.gain_of_asking = (  # type: ignore[method-assign]
        lambda batch, widest, asked, seconds: (2.0, min(width, widest))
    )


def guessed_anew(model: ChatModel, said: tuple[int, ...], width: int) -> Guess:
    """What a head guesses that knows of nothing but `said`, told but for its end in one piece."""
    own, sequence = head_of(model), Sequence(said[:-1])
    own.forget()
    plan = Plan(prefills=(PrefillChunk(sequence, 0, 0, len(said) - 1),))
    model.engine._runner.run(plan)
    own.observe(plan)
    sequence.tokens.append(said[-1])
    assert own.behind(0, sequence) == 1
    return guessed_by(own, {0: sequence}, width)[0]


def test_what_it_guesses_does_not_depend_on_what_happened_in_its_slots(
    open_it: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_HOPELESS", 0.0)
    monkeypatch.setattr(head, "KEPT", 5)
    model, cold = open_it("mixed"), open_it("mixed")
    always(model.engine, 4)
    guessed = remember(head_of(model))
    crowd(model.engine)
    assert model.engine.counters.cached_tokens > 0
    assert len(guessed) > 20
    for said, answer in guessed.items():
        assert guessed_anew(cold, said, len(answer[0])) == answer


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nor_on_a_churn_of_any_kind(
    churning: tuple[ChatModel, ChatModel], data: st.DataObject
) -> None:
    model, cold = churning
    guessed = remember(head_of(model))
    churned(model.engine, data)
    for said, answer in sorted(guessed.items())[::7]:
        assert guessed_anew(cold, said, len(answer[0])) == answer


@pytest.fixture(scope="module")
def churning(open_it: Open) -> Iterator[tuple[ChatModel, ChatModel]]:
    """A model whose head is always asked, and another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "_HOPELESS", 0.0)
        patch.setattr(running, "_drafters", lambda *_: [])
        patch.setattr(head, "KEPT", 3)
        model = open_it("mixed")
        always(model.engine, 2)
        yield model, open_it("mixed")


def test_while_nobody_asks_no_more_states_are_kept_than_a_few(open_it: Open) -> None:
    model = open_it("mixed")
    own, engine = head_of(model), model.engine
    engine._guessing.speculation.gain_of_asking = lambda *_: (0.0, 0)  # type: ignore[method-assign]
    engine.add(Generation(0, list(range(40)), SamplingParams(temperature=0.9, max_tokens=80)))
    engine.step()
    assert timed(model).filled == 39, "of the prompt, at once, all but the last"
    kept = []
    while engine.has_work:
        engine.step()
        kept.append(max(len(own._slots[slot].states) for slot in range(4)))
    assert max(kept) <= head.KEPT + 9
    assert timed(model).filled > 39 + 80 - head.KEPT - 9


def test_a_conversation_that_goes_on_is_not_computed_again(
    open_it: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_drafters", lambda *_: [])
    model = open_it("right")
    params = SamplingParams(temperature=0, max_tokens=40)
    first = Generation(0, list(range(100, 140)), params, cache_namespace="a")
    said = tokens(run(model.engine, first)[0, 0])
    before, accepted = timed(model).filled, model.engine.counters.accepted_tokens
    then = Generation(1, [*first.prompt, *said, 7, 8, 9], params, cache_namespace="a")
    (events,) = run(model.engine, then).values()
    end = events[-1]
    assert isinstance(end, Finished)
    # The last of what is equal is computed again: what the head makes of it is told by the next.
    assert 64 <= end.cached_tokens <= 40 + 40 - 2
    assert timed(model).filled - before < 20
    assert model.engine.counters.accepted_tokens > accepted + 20


def test_another_namespace_finds_nothing(open_it: Open) -> None:
    model = open_it("right")
    one, other = (Sequence([5, 6, 7, 8], namespace=name) for name in "ab")
    plan = Plan(prefills=(PrefillChunk(one, 0, 0, 3),))
    model.engine._runner.run(plan)
    own = head_of(model)
    own.observe(plan)
    assert own.behind(0, other) is None
    assert own.behind(0, one) is None, "the other has it now"


def test_after_a_step_that_failed_nothing_in_its_slots_is_believed(open_it: Open) -> None:
    model = open_it("right")
    engine, runner = model.engine, timed(model)
    wanted = run(engine, *several(0, count=2))
    engine.add(Generation(7, [1, 2, 3], SamplingParams(temperature=0, max_tokens=30)))
    for _ in range(3):
        engine.step()
    runner.fails = True
    engine.add(Generation(8, [4, 5, 6], SamplingParams(temperature=0, max_tokens=30)))
    with pytest.raises(RuntimeError, match="out of order"):
        run(engine)
    for failed in engine.fail_all():
        assert isinstance(failed.event, Finished)
        assert failed.event.reason is FinishReason.ERROR
    runner.fails = False
    own = head_of(model)
    assert all(not own._slots[slot].tokens for slot in range(4))
    assert run(engine, *several(0, count=2)) == wanted


def test_its_cache_is_in_the_budget_to_the_byte(root: Path) -> None:
    budget = CacheBudget(1 << 20)
    model = opened(root, "right", budget)
    assert model.cache_shape.token_bytes == OWN + OWN // 2
    assert budget.total - budget.free == model.cache_shape.total_bytes
    pools = [model.engine._runner, head_of(model)._runner]
    arrays = [a for runner in pools for a in (*runner._pool.keys, *runner._pool.values)]  # type: ignore[attr-defined]
    assert sum(array.nbytes for array in arrays) == model.cache_shape.total_bytes
    model.close()
    assert budget.free == budget.total


def test_without_guesses_it_takes_nothing_and_says_so(root: Path) -> None:
    model = opened(root, "right", CacheBudget(1 << 20), draft_tokens=0)
    assert model.cache_shape.token_bytes == OWN
    assert model.engine._guessing.asking is None
    told = "its head that predicts further tokens is not used: engine.draft_tokens is 0"
    assert model.draft_unused == told
    model.close()
    model = opened(root, "right", CacheBudget(1 << 20))
    assert model.draft_unused == ""
    model.close()


@pytest.mark.parametrize(
    ("provider", "guesses", "why"),
    [
        ("cpu", 0, "engine.draft_tokens is 0"),
        ("cuda", 8, "a GPU computes this model"),
        ("cpu", 8, "this processor lacks what native operators need"),
    ],
)
def test_the_reason_why_it_is_not_used_is_told(
    root: Path, provider: Provider, guesses: int, why: str
) -> None:
    manifest = ModelStore(Layout(root).models).get("right").manifest
    told = why_unused(manifest, provider, EngineSettings(draft_tokens=guesses))
    assert told == f"its head that predicts further tokens is not used: {why}"
