"""The published checkpoint is what its model card says."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence

import pytest
from transformers import Qwen3Config

from guide_recipe.answering import Answerer, Prompt
from guide_recipe.card import card
from guide_recipe.chat import TEMPLATE, Example
from guide_recipe.figures import Figures
from guide_recipe.grading import is_clean, topic_of
from guide_recipe.ranking import index_of
from guide_recipe.reference_encoder import Embed
from guide_recipe.sources import OFF_TOPIC, Sources, read_heldout
from installer.ask.asked import Question
from installer.ask.retrieval import shown
from installer.ask.system_turn import system_turn
from tests.conftest import REPOSITORY
from tests.guide.conftest import CHECKPOINT

EVERY = 7
"""The tests ask every seventh held-out question; all of them are asked by evaluate.py."""
SAMPLING = 0.1
"""How far the share of a sample may be below the share of all."""
MAX_REPOSITORY_BYTES = 16 * 1024 * 1024
FILES = {
    "LICENSE",
    "README.md",
    "chat_template.jinja",
    "config.json",
    "figures.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(CHECKPOINT)


@pytest.fixture(scope="module")
def figures() -> Figures:
    return Figures.of_document(json.loads((CHECKPOINT / "figures.json").read_text()))


def sample(questions: Sequence[Question]) -> list[Question]:
    return list(questions[::EVERY])


def test_it_is_a_normal_checkpoint_and_small() -> None:
    assert {path.name for path in CHECKPOINT.iterdir()} == FILES
    config = Qwen3Config.from_pretrained(CHECKPOINT)
    assert config.architectures == ["Qwen3ForCausalLM"]
    assert config.head_dim % 16 == 0
    assert config.hidden_size % 32 == 0
    assert config.max_position_embeddings >= 2048
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 8 * 1024 * 1024


def test_it_takes_little_room_in_the_repository() -> None:
    """All versions ever committed count: they are in every clone."""
    path = (CHECKPOINT / "model.safetensors").relative_to(REPOSITORY)
    command = ["git", "log", "--format=", "--raw", "--no-abbrev", "--", str(path)]
    log = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    blobs = {line.split()[3] for line in log.splitlines()} - {"0" * 40}
    assert len(blobs) * (CHECKPOINT / "model.safetensors").stat().st_size <= MAX_REPOSITORY_BYTES


def test_the_template_is_the_recipes() -> None:
    assert (CHECKPOINT / "chat_template.jinja").read_text() == TEMPLATE
    config = json.loads((CHECKPOINT / "tokenizer_config.json").read_text())
    assert config["chat_template"] == TEMPLATE


def test_the_figures_are_of_these_weights_and_are_good_enough(figures: Figures) -> None:
    document = json.loads((CHECKPOINT / "figures.json").read_text())
    weights = (CHECKPOINT / "model.safetensors").read_bytes()
    assert document["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert figures.questions == len(read_heldout().on_topic)
    assert figures.with_passages.right >= 0.8
    assert figures.alone.right >= 0.5
    assert min(figures.with_passages.refused, figures.alone.refused) >= 0.9
    form = figures.form
    assert form.ended == form.clean == form.thought_when_asked == 1
    assert form.thought_unasked == 0


def test_the_model_card_states_the_figures(figures: Figures, answerer: Answerer) -> None:
    assert (CHECKPOINT / "README.md").read_text() == card(figures, answerer.parameters)


def test_held_out_questions_are_answered_with_passages(
    answerer: Answerer, encoder: Embed, sources: Sources, figures: Figures
) -> None:
    asked = sample(read_heldout().on_topic)
    index = index_of(sources, encoder)
    prompts = []
    for question, vector in zip(asked, encoder([q.text for q in asked]), strict=True):
        system = system_turn(shown(index.nearest(vector)))
        prompts.append(Prompt(tuple(Example(question.text, "", system=system).messages())))
    answers = answerer.answers(prompts)
    assert all(answer.ended and is_clean(answer.text) for answer in answers)
    right = [
        topic_of(answer.text, sources.answers) == question.topic
        for answer, question in zip(answers, asked, strict=True)
    ]
    assert sum(right) / len(right) >= figures.with_passages.right - SAMPLING, "the card says more"


@pytest.mark.parametrize("thinking", [False, True])
def test_it_thinks_when_asked_to_and_always_ends(answerer: Answerer, thinking: bool) -> None:
    asked = sample(read_heldout().on_topic)
    prompts = [Prompt(tuple(Example(q.text, "").messages()), thinking) for q in asked]
    for answer in answerer.answers(prompts):
        assert answer.ended
        assert is_clean(answer.text)
        assert (answer.thought is not None) is thinking


def test_off_topic_questions_are_declined(answerer: Answerer, sources: Sources) -> None:
    asked = sample(read_heldout().off_topic)
    answers = answerer.answers([Prompt(tuple(Example(q.text, "").messages())) for q in asked])
    declined = [topic_of(answer.text, sources.answers) == OFF_TOPIC for answer in answers]
    assert sum(declined) / len(declined) >= 0.8
