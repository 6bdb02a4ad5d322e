"""A model with layers that keep a running state says the same in any company, from any cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from transformers import AutoModelForCausalLM

from appliance.engine.binding import GraphBinding
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.output import FinishReason
from appliance.engine.sampling import SamplingParams
from appliance.engine.slot_pool import Array
from appliance.prompting import Conversation, Message, Tool
from tests.engine.conftest import OpenChat
from tests.engine.results import churn, run
from tests.engine.test_generation import PROMPTS, ids

GREEDY = SamplingParams(temperature=0, max_tokens=24)
SYSTEM = "Every request is written to the audit log before its first word is sent. " * 9
MODELS = pytest.mark.parametrize("name", ["states", "state-bytes"])


@pytest.fixture(scope="module")
def reference(node_root: Path) -> Callable[[str], Callable[[list[int], int], list[int]]]:
    """Greedy continuation by a model, by the transformers library in float32."""
    torch.set_num_threads(1)
    return lambda name: _reference(node_root / name)


def _reference(checkpoint: Path) -> Callable[[list[int], int], list[int]]:
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)

    def continuation(prompt: list[int], count: int) -> list[int]:
        generated = model.generate(
            torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        tokens: list[int] = generated[0, len(prompt) :].tolist()
        return tokens

    return continuation


@pytest.mark.parametrize("name", ["states", "mixers"])
def test_greedy_output_equals_the_reference(
    open_chat: OpenChat,
    reference: Callable[[str], Callable[[list[int], int], list[int]]],
    name: str,
) -> None:
    model, wanted = open_chat(name, token_budget=32), reference(name)
    for number, text in enumerate([*PROMPTS, SYSTEM]):
        prompt = ids(model, text)
        said = run(model.engine, Generation(number, prompt, GREEDY)).tokens(number)
        assert said == wanted(prompt, 24)


@MODELS
def test_the_next_turn_goes_on_where_the_prompt_ended_or_the_answer_did(
    open_chat: OpenChat, name: str
) -> None:
    model = open_chat(name)
    prompt = ids(model, SYSTEM)
    first = run(model.engine, Generation(0, prompt, GREEDY, cache_namespace="a"))
    answer = first.tokens(0)
    assert first.ends[0, 0].cached_tokens == 0
    followed = [*prompt, *answer, *prompt[:9]]
    assert _cached(model, followed, "a") == len(prompt) + len(answer) - 1, "the slot's own state"
    cut = [*prompt[:-2], *prompt[:40]]  # as a turn whose answer is told otherwise
    before_its_end = (len(prompt) - 8) // 32 * 32
    assert _cached(model, cut, "a") == before_its_end


@MODELS
def test_where_a_prompt_parted_from_another_the_next_goes_on(
    open_chat: OpenChat, name: str
) -> None:
    model = open_chat(name)
    system = ids(model, SYSTEM)
    questions = [ids(model, text) for text in (PROMPTS[0] * 4, PROMPTS[1] * 4, PROMPTS[5] * 4)]
    found = [_cached(model, [*system, *question], "a") for question in questions]
    assert found[:2] == [0, 0], "no state stands where the system prompt ends"
    assert found[2] == len(system) // 32 * 32


@MODELS
def test_behind_an_opening_that_was_told_the_second_goes_on(open_chat: OpenChat, name: str) -> None:
    model = open_chat(name)
    system = ids(model, SYSTEM)
    questions = [ids(model, text) for text in (PROMPTS[0] * 4, PROMPTS[1] * 4)]
    found = [_cached(model, [*system, *question], "a", len(system)) for question in questions]
    assert found == [0, len(system) // 32 * 32]


def test_an_opening_is_what_stands_before_all_that_is_said(open_chat: OpenChat) -> None:
    model = open_chat("states")
    told, asked = Message("system", "Be brief."), Message("user", "Is the log kept?")
    answer = Message("assistant", "Told otherwise.")
    tools = (Tool("forecast", "Says whether it snows."),)

    def opening(*messages: Message, tools: tuple[Tool, ...] = ()) -> tuple[int, str]:
        conversation = Conversation(messages, tools)
        prompt, _ = model.encode_chat(conversation)
        count = model.opening(conversation, prompt)
        return count, model.tokenizer.decode(prompt[count:])

    count, rest = opening(told, asked)
    assert count > 0
    assert rest.startswith("Is the log kept?")
    assert opening(told, asked, answer, asked)[0] == count
    assert opening(told, Message("user", "Else?"))[0] == count
    assert opening(told, asked, tools=tools)[0] >= count
    assert opening(asked) == (
        0,
        model.tokenizer.decode(model.encode_chat(Conversation((asked,)))[0]),
    )


def test_a_cache_that_can_be_cut_anywhere_needs_no_opening(open_chat: OpenChat) -> None:
    model = open_chat("chat")
    conversation = Conversation((Message("system", "Be brief."), Message("user", "Is it?")))
    assert model.opening(conversation, model.encode_chat(conversation)[0]) == 0


@MODELS
def test_sequences_of_one_request_share_their_prompt_up_to_a_state(
    open_chat: OpenChat, name: str
) -> None:
    model = open_chat(name)
    prompt = ids(model, SYSTEM)
    alone = run(model.engine, Generation(0, prompt, GREEDY)).tokens(0)
    computed = model.engine.counters.prompt_tokens
    results = run(model.engine, Generation(0, prompt, GREEDY, n=3))
    assert [results.tokens(0, index) for index in range(3)] == [alone] * 3
    again = len(prompt) - (len(prompt) - 8) // 32 * 32
    assert model.engine.counters.prompt_tokens - computed == len(prompt) + 2 * again


@pytest.mark.parametrize(
    "name", ["states", "state-bytes", "tails", pytest.param("mixers", marks=pytest.mark.slow)]
)
def test_a_churning_batch_says_what_each_says_alone(open_chat: OpenChat, name: str) -> None:
    model = open_chat(name, max_sequences=5, token_budget=40)
    chance = random.Random(5)
    requests = [
        Generation(
            number,
            ids(
                model, SYSTEM * chance.randint(0, 1) + chance.choice(PROMPTS) * chance.randint(1, 2)
            ),
            SamplingParams(temperature=0, max_tokens=chance.randint(1, 24)),
            n=chance.choice([1, 1, 2]),
            cache_namespace=chance.choice(["", "a", "b"]),
            priority=chance.choice([0, 0, 1]),
        )
        for number in range(40)
    ]
    together = churn(model.engine, requests, chance)
    assert model.engine.counters.cached_tokens > 0
    assert model.engine.counters.preemptions > 0
    for request in requests:
        alone = run(model.engine, Generation(request.call, request.prompt, request.params))
        for index in range(request.n):
            tokens = together.tokens(request.call, index)
            cut_off = together.ends[request.call, index].reason is FinishReason.CANCELLED
            assert tokens == alone.tokens(request.call)[: len(tokens)]
            assert cut_off or len(tokens) == len(alone.tokens(request.call))


@MODELS
def test_a_piece_that_is_given_up_leaves_the_state_as_it_was(
    open_chat: OpenChat, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_chat(name, token_budget=64)
    engine, prompt = model.engine, ids(model, SYSTEM * 2)
    alone = run(engine, Generation(0, prompt, GREEDY)).tokens(0)
    given_up, compute = 0, GraphBinding.run

    def give_up(
        binding: GraphBinding, logits: Array, options: ort.RunOptions | None = None
    ) -> None:
        """The second and third try of a piece end behind the last layer."""
        nonlocal given_up
        compute(binding, logits, options)
        if options is not None and binding.seqlens_k[0] > 64 and given_up < 2:
            given_up += 1
            options.terminate = True
            raise RuntimeError("terminated")

    monkeypatch.setattr(GraphBinding, "run", give_up)
    assert run(engine, Generation(1, prompt, GREEDY)).tokens(1) == alone
    assert given_up == 2


@MODELS
def test_nothing_is_guessed_since_a_state_could_not_be_cut(open_chat: OpenChat, name: str) -> None:
    model = open_chat(name, draft_tokens=8)
    prompt = ids(model, "again and " * 30)
    run(model.engine, Generation(0, prompt, GREEDY))
    assert model.engine.counters.drafted_tokens == 0


def _cached(model: ChatModel, prompt: list[int], namespace: str, opening: int = 0) -> int:
    """Cached tokens of a request whose answer is what it is without a cache."""
    cold = run(model.engine, Generation(0, prompt, GREEDY))
    asked = Generation(0, prompt, GREEDY, cache_namespace=namespace, opening=opening)
    warm = run(model.engine, asked)
    assert warm.tokens(0) == cold.tokens(0)
    return warm.ends[0, 0].cached_tokens
