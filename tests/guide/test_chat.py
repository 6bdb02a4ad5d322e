"""The chat format: what training writes is what the template writes, here and on the node."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from appliance.prompting import ChatTemplate, Conversation, Message
from guide_recipe.chat import NO_THOUGHT, OPENING_TOKENS, TEMPLATE, Example, Turn, encode
from guide_recipe.sources import Sources
from guide_recipe.vocabulary import SIZE, encode_broken, train_tokenizer

TURNS = (Turn("hello", "Hello. Ask me."), Turn("Add a model?", "Run `appliance models add`."))
EXAMPLES = [
    Example("how do I undo that?", "Roll back."),
    Example("how?", "So.", system="Answer briefly."),
    Example("how?", "So.", history=TURNS),
    Example("how?", "So.", system="Be brief.", history=TURNS, thought="They ask how."),
]


@pytest.fixture(scope="module")
def tokenizer(sources: Sources) -> Tokenizer:
    return train_tokenizer(sources)


@pytest.fixture(scope="module")
def template() -> Iterator[ChatTemplate]:
    made = ChatTemplate(TEMPLATE, eos_token="<|im_end|>")
    yield made
    made.close()


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text).ids
    return ids


def whole(tokenizer: Tokenizer, example: Example) -> str:
    def ids(text: str) -> list[int]:
        return plain(tokenizer, text)

    text: str = tokenizer.decode(encode(example, ids, ids).ids, skip_special_tokens=False)
    return text


@pytest.mark.parametrize("example", EXAMPLES)
def test_training_writes_what_the_template_writes(tokenizer: Tokenizer, example: Example) -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE)
    prompt = fast.apply_chat_template(
        example.messages(),
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=example.thought is not None,
    )
    thought = "" if example.thought is None else f"{example.thought}\n</think>\n\n"
    written = f"{prompt}{thought}{example.answer}<|im_end|>"
    assert whole(tokenizer, example) == written

    def ids(text: str) -> list[int]:
        return plain(tokenizer, text)

    assert encode(example, ids, ids).ids == ids(written)


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_node_renders_the_same_prompt(
    tokenizer: Tokenizer, template: ChatTemplate, example: Example, thinking: bool
) -> None:
    messages = tuple(Message(m["role"], m["content"]) for m in example.messages())
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE)
    assert template.render(Conversation(messages, thinking=thinking)).text == (
        fast.apply_chat_template(
            example.messages(),
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
    )


def test_thinking_is_off_unless_asked_for(tokenizer: Tokenizer) -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE)
    messages = EXAMPLES[0].messages()
    prompt = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert str(prompt).endswith(f"<|im_start|>assistant\n{NO_THOUGHT}")


def test_earlier_turns_are_shown_without_thoughts(tokenizer: Tokenizer) -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE)
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": "c"},
    ]
    prompt = str(fast.apply_chat_template(messages, tokenize=False))
    assert "hm" not in prompt
    assert "<|im_start|>assistant\nb<|im_end|>\n" in prompt


def test_only_answers_count_and_their_openings_most(tokenizer: Tokenizer) -> None:
    def ids(text: str) -> list[int]:
        return plain(tokenizer, text)

    example = Example("Why?", "Run `appliance models rollback` to go back, please.", history=TURNS)
    tokens = encode(example, ids, ids)
    counted = [(i, w) for i, w in zip(tokens.ids, tokens.weights, strict=True) if w]
    last = ids(f"{example.answer}<|im_end|>")
    assert [i for i, _ in counted[-len(last) :]] == last
    assert [w for _, w in counted[-len(last) :]][:OPENING_TOKENS] == [4.0] * OPENING_TOKENS
    # The first token of each earlier answer would teach to skip the thought: it counts nothing.
    earlier = [i for turn in TURNS for i in ids(f"{turn.answer}<|im_end|>")[1:]]
    assert [i for i, _ in counted[: -len(last)]] == earlier


def test_the_vocabulary_has_its_size_and_reads_everything(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == SIZE
    for text in ("Müller 你好 🙂", "a\n\n\tb", "`appliance ask`"):
        assert tokenizer.decode(plain(tokenizer, text), skip_special_tokens=False) == text


def test_broken_words_are_the_same_text(tokenizer: Tokenizer) -> None:

    text = "how would anybody understand quantization completely"
    broken = [encode_broken(tokenizer, text, Random(seed)) for seed in range(20)]
    assert {tokenizer.decode(ids) for ids in broken} == {text}
    assert len({tuple(ids) for ids in broken}) > 3
