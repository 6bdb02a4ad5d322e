"""One question to the guide: find passages, put them before the model, pass its answer on.

Owns the order of things, readable here, and what is known of an answer afterwards: the handbook
section whose words it is, or that it is nobody's words and should not be acted upon unchecked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from installer.ask.endpoint import Endpoint, Piece
from installer.ask.passages import Passage, read_handbook
from installer.ask.retrieval import Index, Match, Vectors, index_texts, shown, undecided
from installer.ask.system_turn import system_turn
from installer.ask.vectors import embed_with_question


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
        cache: directory that the handbook's vectors are kept in.
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
        self._cache = cache
        self._chat_model = chat_model
        self._embeddings_model = embeddings_model

    def find(self, question: str) -> Finding:
        """The passages that `question` is about. Raises as Endpoint does."""
        texts = index_texts(self._passages)
        vectors, asked = embed_with_question(texts, question, self._embed, self._cache)
        return Finding(tuple(Index(self._passages, vectors).nearest(asked)))

    def answer(self, question: str, finding: Finding, *, think: bool) -> Iterator[Piece]:
        """The guide's answer to `question`, as it comes. Raises as Endpoint does."""
        messages = [
            {"role": "system", "content": system_turn(finding.passages)},
            {"role": "user", "content": question},
        ]
        return self._endpoint.chat(self._chat_model, messages, think=think)

    def _embed(self, texts: Sequence[str]) -> Vectors:
        return self._endpoint.embed(self._embeddings_model, texts)
