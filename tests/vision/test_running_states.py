"""Qwen3.5 shown images by the real engine: states that have read one image and never another."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime as ort
import openai
import pytest

from appliance.bundle.specs import VisionSpec
from appliance.config import EngineSettings
from appliance.engine.binding import GraphBinding
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.output import FinishReason
from appliance.engine.sampling import SamplingParams
from appliance.engine.slot_pool import Array
from appliance.engine.tokenizer import Tokenizer
from appliance.engine.vision.decoder import Pixels
from appliance.engine.vision.eyes import Shown
from appliance.engine.vision.patches import grid_of
from appliance.engine.vision.sight import Sight, expanded
from tests.conftest import BuildOnce
from tests.engine.conftest import open_model_of
from tests.engine.results import churn, run
from tests.fakes.engine_node import EngineNode
from tests.fakes.seeing_states import write_qwen3_5, write_qwen3_5_moe
from tests.shim.node import Node
from tests.shim.real_node import SMALL_CACHE, served
from tests.vision.conftest import LESS_OFTEN, RECURRENT, Seeing, picture
from tests.vision.pictures import data_uri, encoded, gradient
from tests.vision.test_endpoint import seen, shown
from tests.vision.test_parity import Reference, text

PICTURES = [picture(128, 160, seed) for seed in range(4)]
"""Of 8 x 10 tokens each: but for their pixels, prompts that show them are the same."""
OWN = 40
"""Words before an image."""
Prompt = tuple[list[int], Sight | None]


def build_models(root: Path) -> None:
    """The checkpoints are left beside the node's files, for the reference implementation."""
    node = EngineNode(root)
    node.add(write_qwen3_5(root / "qwen3_5"), name="qwen3_5")
    node.add(write_qwen3_5_moe(root / "qwen3_5_moe"), name="qwen3_5_moe")


@pytest.fixture(scope="module")
def models(build_once: BuildOnce) -> Path:
    return build_once("seeing-states", build_models)


@pytest.fixture
def open_seeing(models: Path) -> Iterator[Callable[..., ChatModel]]:
    opened: list[ChatModel] = []

    def open_it(name: str = "qwen3_5", **settings: int) -> ChatModel:
        defaults = {"cache_bytes": 64 << 20, "threads": 1}
        model = open_model_of(models, name, EngineSettings(**(defaults | settings)))
        assert isinstance(model, ChatModel)
        opened.append(model)
        return model

    yield open_it
    for model in opened:
        model.close()


OpenSeeing = Callable[..., ChatModel]


def show(model: ChatModel, *parts: Pixels | list[int]) -> Prompt:
    """A prompt of words and images in turn."""
    vision = model.bundle.manifest.vision
    assert isinstance(vision, VisionSpec)
    assert model.eyes is not None
    images = [part for part in parts if not isinstance(part, list)]
    prompt = [
        token
        for part in parts
        for token in (part if isinstance(part, list) else [vision.image_token])
    ]
    ids, starts = expanded(prompt, vision.image_token, [grid_of(i, vision) for i in images])
    if not images:
        return ids, None
    return ids, model.eyes.see(Shown(ids, starts, images), lambda: False)


def ask(prompt: Prompt, call: int = 0, namespace: str = "", **more: object) -> Generation:
    ids, sight = prompt
    params = SamplingParams(**{"temperature": 0, "max_tokens": 12, **more})  # type: ignore[arg-type]
    return Generation(call, ids, params, cache_namespace=namespace, sight=sight)


def cached(model: ChatModel, *parts: Pixels | list[int]) -> int:
    """Cached tokens of a prompt whose answer is what it is without a cache."""
    prompt = show(model, *parts)
    cold = run(model.engine, ask(prompt))
    warm = run(model.engine, ask(prompt, namespace="a"))
    assert warm.tokens(0) == cold.tokens(0)
    return warm.ends[0, 0].cached_tokens


@pytest.mark.parametrize("name", RECURRENT)
def test_greedy_output_after_images_equals_the_reference(
    open_seeing: OpenSeeing, models: Path, name: str
) -> None:
    """In pieces that end in an image, and then at positions that go on behind its longer side."""
    model = open_seeing(name, token_budget=32)
    bundle = Seeing(models / name, models / f"{name}-1.0")
    reference = Reference(bundle)
    ids, sight = show(model, text(OWN, 3), PICTURES[0], text(9, 4), PICTURES[1], text(5, 5))
    wanted: list[int] = []
    for _ in range(8):
        logits = reference.logits([*ids, *wanted], PICTURES[:2])
        wanted.append(int(logits[-1].argmax()))
    assert run(model.engine, ask((ids, sight), max_tokens=8)).tokens(0) == wanted


def test_a_state_that_has_read_an_image_is_never_anothers(open_seeing: OpenSeeing) -> None:
    model = open_seeing()
    words, question = text(OWN, 0), text(60, 1)
    assert cached(model, words, PICTURES[0], question) == 0
    same = cached(model, words, PICTURES[0], question)
    assert same == (OWN + 80 + 60 - 8) // 32 * 32, "shortly before its end"
    assert cached(model, words, PICTURES[1], question) == 0, "no state stands where they part"
    # What they share is less than a snapshot is worth: nothing is kept of it either.
    assert cached(model, words, PICTURES[2], question) == 0
    assert cached(model, words, PICTURES[1], question) == same, "each has its own"


def test_where_prompts_parted_behind_an_image_or_in_front_of_one_the_next_goes_on(
    open_seeing: OpenSeeing,
) -> None:
    model = open_seeing(max_sequences=8)
    system = text(150, 0)
    behind = [cached(model, system, PICTURES[0], text(40, 10 + n)) for n in range(3)]
    assert behind[2] == (150 + 80) // 32 * 32, "the image, and what is in front of it"
    before = [cached(model, system, PICTURES[n], text(40, 9)) for n in (1, 2, 3)]
    assert before[2] == 150 // 32 * 32, "up to the border before the images"


def test_the_next_turn_goes_on_behind_the_answer_about_an_image(open_seeing: OpenSeeing) -> None:
    model = open_seeing()
    parts = text(OWN, 0), PICTURES[0], text(60, 1)
    ids, sight = show(model, *parts)
    first = run(model.engine, ask((ids, sight), namespace="a"))
    answer = first.tokens(0)
    found = cached(model, *parts[:2], [*parts[2], *answer, *text(20, 2)])
    assert found == len(ids) + len(answer) - 1, "the slot's own state"


@pytest.mark.parametrize("name", [RECURRENT[0], *LESS_OFTEN])
def test_a_churning_batch_says_what_each_says_alone(open_seeing: OpenSeeing, name: str) -> None:
    model = open_seeing(name, max_sequences=3, token_budget=64)
    chance = random.Random(7)
    requests = []
    for number in range(30):
        parts: list[Pixels | list[int]] = [text(150 * chance.randint(0, 1) + 20, 0)]
        for _ in range(chance.randint(0, 2)):
            parts += [chance.choice(PICTURES[:2]), text(chance.choice([5, 50]), 1)]
        ids, sight = show(model, *parts)
        requests.append(
            Generation(
                number,
                ids,
                SamplingParams(temperature=0, max_tokens=chance.randint(1, 24)),
                n=chance.choice([1, 1, 2]),
                cache_namespace=chance.choice(["", "a", "b"]),
                priority=chance.choice([0, 0, 1]),
                opening=chance.choice([0, 150, 170]),
                sight=sight,
            )
        )
    together = churn(model.engine, requests, chance)
    assert model.engine.counters.cached_tokens > 0
    assert model.engine.counters.preemptions > 0
    for one in requests:
        alone = run(model.engine, Generation(one.call, one.prompt, one.params, sight=one.sight))
        for index in range(one.n):
            tokens = together.tokens(one.call, index)
            cut_off = together.ends[one.call, index].reason is FinishReason.CANCELLED
            assert tokens == alone.tokens(one.call)[: len(tokens)]
            assert cut_off or len(tokens) == len(alone.tokens(one.call))


def test_of_two_pieces_in_a_step_the_first_counts_if_the_second_is_given_up(
    open_seeing: OpenSeeing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot cuts the last step of a prompt in two: whoever computed the first piece again
    would have its state read it twice."""
    model = open_seeing(token_budget=200)
    prompt = show(model, text(OWN, 0), PICTURES[0], text(180, 1))
    alone = run(model.engine, ask(prompt)).tokens(0)
    given_up, compute = 0, GraphBinding.run

    def give_up(
        binding: GraphBinding, logits: Array, options: ort.RunOptions | None = None
    ) -> None:
        nonlocal given_up
        compute(binding, logits, options)
        if options is not None and binding.seqlens_k[0] == len(prompt[0]) - 1 and given_up < 2:
            given_up += 1
            options.terminate = True
            raise RuntimeError("terminated")

    monkeypatch.setattr(GraphBinding, "run", give_up)
    assert run(model.engine, ask(prompt, 1)).tokens(1) == alone
    assert given_up == 2


IMAGES = [encoded(gradient(160, 192).rotate(angle)) for angle in (0, 180, 90)]
"""Of 10 x 12 tokens each."""
QUESTION = "say what you see in it, and what is written there, at length, please. " * 2


node = served("seeing-states", build_models, f"token_budget = 32\n{SMALL_CACHE}")
"""Steps are short, so that images are cut."""


def complete(client: openai.OpenAI, model: str, messages: list[Any], count: int) -> Any:
    return client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=count,
        temperature=0,
        logprobs=True,
        extra_body={"ignore_eos": True},
    )


@pytest.mark.parametrize("name", [RECURRENT[0], *LESS_OFTEN])
def test_the_sdk_gets_the_references_answer_about_two_images(
    node: Node, client: openai.OpenAI, models: Path, name: str
) -> None:
    messages = shown(*map(data_uri, IMAGES[:2]))
    answer = complete(client, name, messages, 5)
    ids = node.request("POST", "/tokenize", {"model": name, "messages": messages}).json["tokens"]
    bundle = Seeing(models / name, models / f"{name}-1.0")
    assert ids.count(bundle.vision.image_token) == 2 * 10 * 12
    assert answer.usage.prompt_tokens == len(ids)
    reference, wanted = Reference(bundle), list[int]()
    for _ in range(5):
        logits = reference.logits([*ids, *wanted], [seen(image) for image in IMAGES[:2]])
        wanted.append(int(logits[-1].argmax()))
    tokenizer = Tokenizer((bundle.checkpoint / "tokenizer.json").read_bytes())
    said = [bytes(token.bytes or ()) for token in answer.choices[0].logprobs.content]
    assert said == [tokenizer.token_bytes(token) for token in wanted]


def test_the_second_request_with_a_system_prompt_computes_little_of_it_whatever_it_shows(
    client: openai.OpenAI,
) -> None:
    def found(image: bytes) -> int:
        told, asked = shown(data_uri(image), text=QUESTION)
        messages = [{**told, "content": "Each picture is of one page of the log. " * 9}, asked]
        usage = complete(client, "qwen3_5", messages, 1).usage
        return usage.prompt_tokens_details.cached_tokens or 0

    assert found(IMAGES[0]) == 0
    assert found(IMAGES[1]) >= 128


def test_a_conversation_about_an_image_goes_on_and_one_about_another_begins_anew(
    client: openai.OpenAI,
) -> None:
    def found(messages: list[Any]) -> tuple[int, int]:
        usage = complete(client, "qwen3_5", messages, 4).usage
        return usage.prompt_tokens_details.cached_tokens or 0, usage.prompt_tokens

    turns = [shown(data_uri(image), text=QUESTION) for image in IMAGES]
    told = [{"role": "assistant", "content": "Told otherwise."}, *shown(text="and now?")[1:]]
    none, first = found(turns[0])
    assert none == 0
    more, _ = found([*turns[0], *told])
    assert first - 50 < more < first, "but for what stands behind the last state"
    for turn, follow in itertools.product(turns[1:], ([], told)):
        cached, _ = found([*turn, *follow])
        assert (cached == 0) == (not follow), "nothing of an image that was not shown before"
