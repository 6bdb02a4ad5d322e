"""A reranker brought to life: how a query and a document become one run of tokens.

Owns the prompt of a pair. Refuses pairs that are longer than the model reads: nothing is cut
unless the caller says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from appliance.bundle.specs import PairPrompt, RerankSpec
from appliance.engine.embedding_engine import EmbeddingEngine
from appliance.engine.encoder_runner import Pair
from appliance.engine.tokenizer import Tokenizer
from appliance.errors import RequestError
from appliance.model_store import StoredBundle
from appliance.prompting import Prompt

MOST_PAIRS = 2048
"""Of one request."""
_SPECIAL_TOKENS = 4
"""At most so many a tokenizer puts around two texts by itself."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """What is asked: one query for all documents, or one for each.

    Attributes:
        instruction: what the search is for; empty takes the bundle's own.
        max_document_tokens: longer documents are cut; 0 is never.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    instruction: str = ""
    max_document_tokens: int = 0


class RerankModel:
    """A reranker, ready to score."""

    def __init__(
        self,
        bundle: StoredBundle,
        spec: RerankSpec,
        tokenizer: Tokenizer,
        engines: Sequence[EmbeddingEngine[Pair]],
        memory_bytes: int,
    ) -> None:
        self.bundle = bundle
        self.spec = spec
        self.tokenizer = tokenizer
        self.engines = tuple(engines)
        """One, or one on each GPU that it is loaded on; `engine` is the first."""
        self.engine = self.engines[0]
        self.memory_bytes = memory_bytes
        prompt = None if isinstance(spec.prompt, msgspec.UnsetType) else spec.prompt
        self._frame = None if prompt is None else _Frame(prompt, tokenizer)

    @property
    def pair_tokens(self) -> int:
        """No pair has more tokens than its texts have bytes, and these."""
        return _SPECIAL_TOKENS if self._frame is None else self._frame.most_tokens

    def encode(self, asked: Ranking) -> list[Pair]:
        """The pairs' tokens. Raises RequestError naming what is wrong."""
        _check(asked)
        if asked.instruction and self._frame is None:
            raise RequestError(
                "this model reads no instruction",
                param="instruction",
                hint="leave the parameter out",
                code="unsupported_parameter",
            )
        single = len(asked.queries) == 1
        pairs: list[Pair] = []
        for index, document in enumerate(asked.documents):
            if asked.max_document_tokens:
                document = self.tokenizer.cut(document, asked.max_document_tokens)
            pair = self._pair(asked, asked.queries[0 if single else index], document)
            if len(pair) > self.spec.max_length:
                raise RequestError(
                    f"a query and a document have {len(pair)} tokens together; "
                    f"the model reads {self.spec.max_length}",
                    param=f"documents[{index}]",
                    hint="split the document into shorter ones, or let it be cut",
                    code="context_length_exceeded",
                )
            pairs.append(pair)
        return pairs

    def close(self) -> None:
        """Nothing is held outside this object."""

    def _pair(self, asked: Ranking, query: str, document: str) -> Pair:
        if self._frame is None:
            return Pair(*self.tokenizer.encode_pair(query, document))
        ids = self._frame.encode(asked.instruction, query, document)
        return Pair(ids, [0] * len(ids))


class _Frame:
    """The texts around a pair that a generative reranker was trained with."""

    def __init__(self, prompt: PairPrompt, tokenizer: Tokenizer) -> None:
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._start = tokenizer.encode_prompt(Prompt(prompt.start))
        self._end = tokenizer.encode_prompt(Prompt(prompt.end))

    @property
    def most_tokens(self) -> int:
        prompt = self._prompt
        labels = prompt.instruct + prompt.instruction + prompt.query + prompt.document
        return len(self._start) + len(self._end) + len(labels.encode())

    def encode(self, instruction: str, query: str, document: str) -> list[int]:
        """Everything between start and end is one text, and all of it is plain."""
        prompt = self._prompt
        text = prompt.instruct + (instruction or prompt.instruction)
        text += prompt.query + query + prompt.document + document
        return [*self._start, *self._tokenizer.encode_inside(text), *self._end]


def _check(asked: Ranking) -> None:
    if not 0 < len(asked.documents) <= MOST_PAIRS:
        raise RequestError(
            f"there are {len(asked.documents)} documents, 1 to {MOST_PAIRS} are possible",
            param="documents",
        )
    if len(asked.queries) not in (1, len(asked.documents)):
        raise RequestError(
            f"there are {len(asked.queries)} queries for {len(asked.documents)} documents",
            param="queries",
            hint="give one query for all documents, or one for each",
        )
    if "" in asked.queries:
        raise RequestError("a query is empty", param=f"queries[{list(asked.queries).index('')}]")
