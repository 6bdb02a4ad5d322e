"""The guide's tokenizer: byte-level BPE, trained on the handbook and the training questions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from guide_recipe.chat import END, END_OF_TEXT, START, THINK, THOUGHT
from guide_recipe.sources import Sources

SIZE = 3072
BROKEN_SHARE = 0.1
"""Words of four letters or more that users type and training sees in two parts."""


def train_tokenizer(sources: Sources) -> Tokenizer:
    """A tokenizer of SIZE entries; the special tokens come first."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [AddedToken(text, special=True, normalized=False) for text in (END_OF_TEXT, START, END)]
    # Thoughts are text that a reader may see, so their tags are no control tokens.
    tags = [AddedToken(text, special=False, normalized=False) for text in (THINK, THOUGHT)]
    trainer = BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[*marks, *tags],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(sources), trainer)
    tokenizer.add_special_tokens(marks)
    tokenizer.add_tokens(tags)
    return tokenizer


def encode_broken(tokenizer: Tokenizer, text: str, chance: Random) -> list[int]:
    """Encode `text` with some words broken in two, so that words are also seen in pieces.

    In place of BPE dropout (Provilkov et al. 2020), whose generator cannot be seeded here.
    """
    ids: list[int] = []
    for part in _breaks(text, chance):
        ids += tokenizer.encode(part).ids
    return ids


def _breaks(text: str, chance: Random) -> Iterator[str]:
    start = 0
    for word in re.finditer(r"[A-Za-z]{4,}", text):
        if chance.random() < BROKEN_SHARE:
            end = chance.randrange(word.start() + 1, word.end())
            yield text[start:end]
            start = end
    yield text[start:]


def _texts(sources: Sources) -> Iterator[str]:
    for question in (*sources.on_topic, *sources.off_topic):
        yield question.text
        yield question.text.lower()
    for text in (*sources.answers.values(), *sources.thoughts.values()):
        yield from [text] * 8
    for passage in sources.passages:
        yield f"{passage.heading}\n{passage.body}"
    for group in (*sources.synonyms, *sources.everyday.values()):
        yield from (f" {word}" for word in group)
