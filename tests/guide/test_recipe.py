"""The recipe runs, repeats exactly, learns, and publishes a checkpoint that others can load."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch

from guide_recipe.answering import Answer, Answerer, Prompt
from guide_recipe.baseline import BagOfWords
from guide_recipe.chat import END
from guide_recipe.composer import (
    FOLLOW_UP_SHARE,
    HISTORY_SHARE,
    OFF_TOPIC_SHARE,
    PASSAGES_SHARE,
    THINKING_SHARE,
    Composer,
)
from guide_recipe.figures import Figures, Measure
from guide_recipe.grading import is_clean, topic_of
from guide_recipe.recipe import make
from guide_recipe.reference_encoder import Embed
from guide_recipe.sources import OFF_TOPIC, Questions, Sources
from guide_recipe.training import Plan, schedule
from guide_recipe.wording import Wording
from installer.ask.asked import Question

PLAN = Plan(steps=4, batch_tokens=512)


class Steps:
    """Keeps what training reports."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def __call__(self, step: int, loss: float, rate: float, speed: float) -> None:
        assert step == len(self.losses)
        self.losses.append(loss)


def weights(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Few made-up questions to be declined, for embedding a thousand takes long, and few folds of
    what is asked, each of which teaches a ranking: they are as good here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guide_recipe.composer.UNRELATED", 60)
        patch.setattr("guide_recipe.ranking.FOLDS", 2)
        yield


@pytest.fixture(scope="module")
def composer(sources: Sources, encoder: Embed) -> Composer:
    return Composer(sources, encoder, seed=1)


def test_a_short_run_learns_repeats_and_publishes(
    sources: Sources, encoder: Embed, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("one", "two"):
            steps = Steps()
            make(sources, PLAN, encoder, tmp_path / name, steps)
            assert steps.losses[-1] < steps.losses[0]
    finally:
        torch.set_num_threads(threads)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    answerer = Answerer(tmp_path / "one")
    assert answerer.tokenizer.eos_token == END
    (answer,) = answerer.answers([Prompt(({"role": "user", "content": "hello"},))])
    assert isinstance(answer, Answer)


def test_examples_come_in_the_set_proportions(composer: Composer, sources: Sources) -> None:
    examples = [composer.example(0.9) for _ in range(3000)]
    refusal = sources.answers[OFF_TOPIC]

    def share(values: list[bool]) -> float:
        return sum(values) / len(values)

    first_turns = 1 - FOLLOW_UP_SHARE
    near = partial(pytest.approx, abs=0.03)
    assert share([e.answer == refusal for e in examples]) == near(OFF_TOPIC_SHARE * first_turns)
    assert share([e.thought is not None for e in examples]) == near(THINKING_SHARE)
    assert share(["handbook" in e.system for e in examples]) == near(PASSAGES_SHARE)
    histories = FOLLOW_UP_SHARE + first_turns * HISTORY_SHARE
    assert share([bool(e.history) for e in examples]) == near(histories)
    with_passages = [e for e in examples if "[1]" in e.system and e.answer != refusal]
    there = share([e.answer in e.system for e in with_passages])
    assert 0.8 < there < 1, "retrieval is mostly right, and not always"


def test_a_run_begins_with_bare_questions(composer: Composer) -> None:
    for _ in range(100):
        example = composer.example(0.1)
        assert (example.system, example.history, example.thought) == ("", (), None)


def test_the_same_seed_gives_the_same_examples(
    sources: Sources, encoder: Embed, composer: Composer
) -> None:
    one, two = (Composer(sources, encoder, seed=3) for _ in range(2))
    for progress in (0.1, 0.9):
        first = [one.example(progress) for _ in range(50)]
        assert first == [two.example(progress) for _ in range(50)]


def test_a_question_is_reworded_in_many_ways(sources: Sources) -> None:
    wording, chance = Wording(sources.synonyms), Random(1)
    question = Question("remove-a-model", "delete an old model", "verb")
    ways = {wording.reword(question, chance) for _ in range(100)}
    assert len(ways) > 80
    assert all(way.strip() for way in ways)


def test_the_schedule_rises_and_falls() -> None:
    rates = [schedule(step / 100) for step in range(100)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < min(rates) < max(rates) <= 1


ANSWERS = {
    "add": "Run `appliance models add BUNDLE` and wait.",
    "list": "Run `appliance models list` and look at what it prints.",
}


@pytest.mark.parametrize(
    ("answer", "topic"),
    [
        ("Run `appliance models add BUNDLE` and wait.", "add"),
        ("  Run `appliance models add BUNDLE`\nand wait. ", "add"),
        ("Run `appliance models add BUNDLE` and waits.", "add"),
        ("Run `appliance models ad BUNDLE` and wait.", None),
        ("Run `appliance models list` and wait.", None),
        ("Run appliance models add BUNDLE and wait.", None),
        ("", None),
    ],
)
def test_an_answer_counts_if_every_command_is_there_to_the_letter(
    answer: str, topic: str | None
) -> None:
    assert topic_of(answer, ANSWERS) == topic


def test_marks_and_tags_in_an_answer_are_not_clean() -> None:
    assert is_clean("Run it.")
    for text in ("", " \n", "a<|im_start|>", "<think>\nhm", "hm</think>"):
        assert not is_clean(text)


def test_the_baseline_goes_by_words_alone() -> None:
    model = BagOfWords([Question("add", "add a model"), Question("list", "which models are there")])
    assert model.topic("model a add") == "add"
    assert model.topic("are there others") == "list"


def test_the_figures_count_what_they_say(sources: Sources, encoder: Embed) -> None:
    """A perfect, a silent and a refusing model get the figures that they deserve."""
    topics = ("add-a-model", "revoke-an-api-key")
    on_topic = tuple(Question(topic, f"question {topic}") for topic in topics)
    split = Questions(on_topic, (Question(OFF_TOPIC, "question off-topic"),))

    def perfect(prompts: Sequence[Prompt]) -> list[Answer]:
        found = []
        for prompt in prompts:
            topic = prompt.messages[-1]["content"].removeprefix("question ")
            thought = "hm" if prompt.thinking else None
            found.append(Answer(sources.answers[topic], thought, ended=True))
        return found

    best = Measure(sources, split, perfect, encoder).figures()
    assert best.with_passages.right == best.alone.right == best.alone.refused == 1
    assert best.form.ended == best.form.clean == best.form.thought_when_asked == 1
    assert best.form.thought_unasked == best.alone.falsely_refused == 0
    assert Figures.of_document(best.document()) == best

    refusing = Measure(
        sources,
        split,
        lambda prompts: [Answer(sources.answers[OFF_TOPIC], "x", ended=False) for _ in prompts],
        encoder,
    ).figures()
    assert refusing.alone.right == 0
    assert refusing.alone.refused == refusing.alone.falsely_refused == 1
    assert refusing.form.ended == 0
    assert refusing.form.thought_unasked == 1

    silent = Measure(
        sources, split, lambda prompts: [Answer("", None, ended=True) for _ in prompts], encoder
    ).figures()
    assert silent.alone.refused == silent.alone.right == silent.form.clean == 0
    assert silent.with_passages.right == 1, "the best section's words are passed on instead"
