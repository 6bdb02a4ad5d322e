"""Off-topic questions put together by chance from everyday words.

The written off-topic questions show how people ask; these show that there is no end to what they
ask about, in the same words in which others ask about the appliance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from guide_recipe.sources import OFF_TOPIC, Question

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

    def question(self, chance: Random) -> Question:
        """The next one."""
        kind = chance.random()
        if kind < 0.5:
            phrase = f"{chance.choice(self._verbs)} {chance.choice(self._things)}"
            return Question(OFF_TOPIC, phrase, "verb")
        if kind < 0.6:
            return Question(OFF_TOPIC, chance.choice(self._things + self._facts), "noun")
        if kind < 0.75:
            return _fill(chance.choice(_THINGS), self._things, chance)
        return _fill(chance.choice(_FACTS), self._facts, chance)


def _fill(frame: str, words: Sequence[str], chance: Random) -> Question:
    text = frame.format(*chance.sample(words, frame.count("{}")))
    for article in ("a", "an", "the"):
        text = text.replace(f"my {article} ", "my ").replace(f"best {article} ", "best ")
        text = text.replace(f"which {article} ", "which ")
    return Question(OFF_TOPIC, text)
