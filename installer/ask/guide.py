"""One question to the guide: find passages, put them before the model, pass its answer on.

Owns the order of things, readable here, and what is known of an answer afterwards: the handbook
section whose words it is, or that it is nobody's words and should not be acted upon unchecked.
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Finding:
    """What retrieval found: the best passages, best first, and whether they settle it."""

    matches: tuple[Match, ...]

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
        return Finding(tuple(Index(self._passages, reader).nearest(asked)))

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
