"""Off-topic questions put together by chance from everyday words and from invented ones.

The written off-topic questions show how people ask; these show that there is no end to what they
ask about, in the same words in which others ask about the appliance. Invented words stand for all
the words that the guide has never met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from guide_recipe.sources import OFF_TOPIC
from installer.ask.asked import Question

INVENTED_SHARE = 0.25
"""Of the words for things."""
_SHORTEST, _LONGEST = 4, 12
"""Letters of an invented word."""

_FACTS = (
    *("what is {}", "what's {}", "how does {} work", "why is {} so famous", "who invented {}"),
    *("who discovered {}", "when was {} discovered", "where is {}", "how big is {}"),
    *("how old is {}", "how many people know {}", "what colour is {}", "how much does {} weigh"),
    *("what is the history of {}", "what is the difference between {} and {}", "is {} dangerous"),
    *(
        "is {} older than {}",
        "what do you think about {}",
        "how fast is {}",
        "how long does {} last",
    ),
    *("write a poem about {}", "write an essay on {}", "tell me a joke about {}", "do you like {}"),
    *("summarise what is known about {}", "can you draw {}", "what causes {}", "what eats {}"),
)
_THINGS = (
    *("what is the best {}", "where can I buy {}", "how much does {} cost", "is {} expensive"),
    *("which {} should I get", "I lost {}", "my {} is broken", "what goes well with {}"),
    *("can you recommend {}", "do I need {}", "is {} good for me", "should I get {} or {}"),
)


class Unrelated:
    """Makes questions from lists of verbs, things and facts."""

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._verbs, self._things, self._facts = (
            tuple(words[kind]) for kind in ("verbs", "things", "facts")
        )
        self._followers = _followers(words)

    def question(self, chance: Random) -> Question:
        """The next one."""
        kind = chance.random()
        if kind < 0.5:
            (thing,) = self._draw(self._things, 1, chance)
            return Question(OFF_TOPIC, f"{chance.choice(self._verbs)} {thing}", "verb")
        if kind < 0.6:
            (thing,) = self._draw(self._things + self._facts, 1, chance)
            return Question(OFF_TOPIC, thing, "noun")
        frames, words = (_THINGS, self._things) if kind < 0.75 else (_FACTS, self._facts)
        frame = chance.choice(frames)
        return _fill(frame, self._draw(words, frame.count("{}"), chance))

    def _draw(self, words: Sequence[str], count: int, chance: Random) -> list[str]:
        return [
            self._invent(chance) if chance.random() < INVENTED_SHARE else word
            for word in chance.sample(words, count)
        ]

    def _invent(self, chance: Random) -> str:
        """A word of two letter chains that occur in real ones, one letter after the other."""
        word = chance.choice([start for start in self._followers if start[0] == " "])
        while len(word) < _LONGEST and (following := self._followers.get(word[-2:])):
            letter = chance.choice(following)
            if letter == " " and len(word) > _SHORTEST:
                break
            word += letter if letter != " " else chance.choice("aeiou")
        return word.strip()


def _followers(words: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """For each two letters that follow each other in a word, the letters that come next."""
    found: dict[str, list[str]] = {}
    for word in " ".join(phrase for phrases in words.values() for phrase in phrases).split():
        text = f" {word.lower()} "
        for first, second, third in zip(text, text[1:], text[2:], strict=False):
            found.setdefault(first + second, []).append(third)
    return found


def _fill(frame: str, words: Sequence[str]) -> Question:
    text = frame.format(*words)
    for article in ("a", "an", "the"):
        text = text.replace(f"my {article} ", "my ").replace(f"best {article} ", "best ")
        text = text.replace(f"which {article} ", "which ")
    return Question(OFF_TOPIC, text)
