"""One question to the guide: find passages, put them before the model, pass its answer on.

Owns the order of things, readable here, and what is known of an answer afterwards: the handbook
section whose words it is, or that it is nobody's words and should not be acted upon unchecked.
Refuses to pass on what cannot be from the sections that the model was shown: the best of them
answers instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from installer.ask.asked import read_asked
from installer.ask.endpoint import Endpoint, Piece
from installer.ask.learnt import reader_and_question
from installer.ask.passages import Passage, read_handbook
from installer.ask.reader import Reader, Vectors
from installer.ask.retrieval import Index, Match, learn, lessons, shown, undecided
from installer.ask.system_turn import system_turn

REFUSAL = "I can only answer questions about operating this appliance, so I cannot help with that."
"""How the guide declines; it was trained to say this."""
SURE = 2.0
"""Score of a passage from which on a refusal is not believed."""

COPIER = "guide"
"""Name of the model that answers in a section's own words or declines (decision 0071)."""

_LITERAL = re.compile(r"`[^`]+`")


@dataclass(frozen=True, slots=True)
class Finding:
    """What retrieval found: the best passages, best first, and whether they settle it."""

    matches: tuple[Match, ...]
    leads: frozenset[str]
    """Those of the whole handbook."""
    copies: bool = False
    """Whether the model that is asked answers in a section's own words: what it says in others is
    what it learnt of an earlier handbook."""

    @property
    def undecided(self) -> bool:
        return undecided(self.matches)

    @property
    def passages(self) -> tuple[Passage, ...]:
        """Those that the model is given."""
        return shown(self.matches)

    def source_of(self, answer: str) -> Passage | None:
        """The passage whose lead `answer` is, word for word."""
        words = answer.split()
        return next((p for p in self.passages if p.lead.split() == words), None)

    def passed_on(self, answer: str) -> str:
        """`answer`, or the best passage's lead if it is not from the passages."""
        if not self.passages or self.source_of(answer) or not self._is_foreign(answer):
            return answer
        return self.passages[0].lead

    def _is_foreign(self, answer: str) -> bool:
        """Whether it declines what was found, or has what no passage has or can have."""
        text = " ".join(answer.split())
        if text == REFUSAL:
            return self.matches[0].score >= SURE
        if self.copies:
            return True
        shown = {literal for p in self.passages for literal in _LITERAL.findall(p.lead)}
        return text in self.leads or not shown.issuperset(_LITERAL.findall(text))


class Guide:
    """The guide of one node.

    Args:
        endpoint: the node's endpoint.
        handbook: directory of the handbook's pages.
        cache: directory for what was learnt of the handbook.
        chat_model, embeddings_model: names on the endpoint.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        handbook: Path,
        cache: Path,
        chat_model: str,
        embeddings_model: str,
    ) -> None:
        self._endpoint = endpoint
        self._passages = read_handbook(handbook)
        self._lessons = lessons(self._passages, read_asked(handbook))
        self._cache = cache
        self._chat_model = chat_model
        self._embeddings_model = embeddings_model

    def find(self, question: str) -> Finding:
        """The passages that `question` is about. Raises as Endpoint does."""
        reader, asked = reader_and_question(
            self._lessons, question, self._embed, self._learn, self._cache
        )
        matches = Index(self._passages, reader).nearest(asked)
        return Finding(
            tuple(matches),
            frozenset(p.lead for p in self._passages),
            copies=self._chat_model == COPIER,
        )

    def answer(self, question: str, finding: Finding, *, think: bool) -> Iterator[Piece]:
        """The guide's answer to `question`, as it comes. Raises as Endpoint does."""
        messages = [
            {"role": "system", "content": system_turn(finding.passages)},
            {"role": "user", "content": question},
        ]
        return self._endpoint.chat(self._chat_model, messages, think=think)

    def _embed(self, texts: Sequence[str]) -> Vectors:
        return self._endpoint.embed(self._embeddings_model, texts)

    def _learn(self, vectors: Vectors) -> Reader:
        return learn(self._passages, self._lessons, vectors)
