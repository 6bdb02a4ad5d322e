"""Prompts of an exact number of tokens, without the model's tokenizer.

Owns the choice of words. A few short requests find a group of common words that cost the same,
so that any sequence of them has a known length. Each prompt draws its own sequence, so it differs
from every other within its first words and a prefix cache cannot help; a shared prefix is there
only when it is asked for. Refuses to guess: what could not be calibrated is said to be so.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.errors import NotFoundError, UsageError
from installer.bench.server import Messages

WORDS = ("of", "to", "in", "is", "on", "as", "by", "at", "or", "be", "it", "we", "an", "do", "if",
         "no")  # fmt: skip
_FILLERS = (".", ",", " a", "!", "-")
_REPEATS = 12
_MIN_GROUP = 4
"""Fewer different words, and prompts would be alike for too long."""

Count = Callable[[str], Awaitable[int | None]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a prompt of a given length is made: `base + cost * words` tokens, and fillers.

    `exact`: the server's own counts made it; otherwise a word counts as a token.
    """

    words: tuple[str, ...] = WORDS
    base: int = 0
    cost: int = 1
    filler: str = ""
    exact: bool = False

    def text(self, tokens: int, *, shared: int, seed: int, index: int) -> str:
        """The `index`-th prompt of `seed`: `tokens` long, the first `shared` of them common."""
        words, rest = divmod(tokens - self.base, self.cost)
        same = min(max(shared - self.base, 0) // self.cost, words)
        common = _draw(self.words, same, f"{seed}/shared")
        own = _draw(self.words, words - same, f"{seed}/{index}")
        return " ".join([*common, *own]) + self.filler * rest

    @property
    def least(self) -> int:
        """Tokens of the shortest prompt."""
        return self.base + 8 * self.cost

    def corrected(self, asked: int, got: int | None) -> Recipe:
        """The recipe after a prompt of `asked` tokens turned out to have `got`."""
        if got is None or not self.exact:
            return self
        return replace(self, base=self.base + got - asked)


async def calibrate(count: Count) -> Recipe:
    """Find the recipe by counting short texts with `count`."""
    costs: dict[int, list[str]] = defaultdict(list)
    for word in WORDS:
        tokens = await count(_repeat(word, _REPEATS))
        if tokens is None:
            return Recipe()
        costs[tokens].append(word)
    short, words = _cheapest(costs)
    long = await count(_repeat(words[0], 2 * _REPEATS))
    if long is None or long <= short:
        return Recipe()
    cost = max(round((long - short) / _REPEATS), 1)
    filler = await _filler(count, words[0], short, cost) if cost > 1 else ""
    return Recipe(tuple(words), short - cost * _REPEATS, cost, filler, exact=True)


def read_prompts(path: Path) -> tuple[Messages, ...]:
    """The prompts of a file: one a line, as text or as a JSON object with `messages`.

    Raises NotFoundError, UsageError naming the line.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise NotFoundError(
            f"{path} cannot be read: {error.strerror}", hint="check --prompts"
        ) from error
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", hint="check --prompts") from None
    prompts = [_prompt(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UsageError(f"{path} holds no prompt", hint="write one prompt a line")
    return tuple(prompts)


def as_messages(text: str) -> Messages:
    """`text` as the only turn of a conversation."""
    return ({"role": "user", "content": text},)


def _prompt(path: Path, number: int, line: str) -> Messages:
    if not line.lstrip().startswith("{"):
        return as_messages(line)
    try:
        messages = json.loads(line)["messages"]
        if not messages or not all(isinstance(m["role"], str) for m in messages):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"line {number} of {path} is not an object with `messages`",
            hint='for instance {"messages": [{"role": "user", "content": "…"}]}',
        ) from None
    return tuple(messages)


def _cheapest(costs: dict[int, list[str]]) -> tuple[int, list[str]]:
    """The words that cost least, unless they are too few; then the largest group."""
    enough = [item for item in sorted(costs.items()) if len(item[1]) >= _MIN_GROUP]
    return enough[0] if enough else max(costs.items(), key=lambda item: len(item[1]))


async def _filler(count: Count, word: str, short: int, cost: int) -> str:
    """What adds one token each time, up to `cost - 1` times; empty if nothing does."""
    for filler in _FILLERS:
        for times in range(1, cost):
            tokens = await count(_repeat(word, _REPEATS) + filler * times)
            if tokens != short + times:
                break
        else:
            return filler
    return ""


def _repeat(word: str, times: int) -> str:
    return " ".join([word] * times)


def _draw(words: Sequence[str], count: int, name: str) -> list[str]:
    return random.Random(name).choices(words, k=count)  # noqa: S311
