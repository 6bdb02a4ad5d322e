"""/v1/rerank and /v1/score on the wire: the shapes that Cohere, Jina and vLLM have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.usage import EmbeddingUsage

MAX_DOCUMENTS = 1000

_Words = Annotated[str, Meta(min_length=1)]
_Count = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
_Texts = Annotated[list[_Words], Meta(min_length=1, max_length=MAX_DOCUMENTS)]


class TextDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str


class _Common(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fields that mean the same in both APIs."""

    model: str
    instruction: _Words | None = None
    max_tokens_per_doc: _Count | None = None
    use_activation: object = None
    user: str | None = None

    def _to_engine(
        self, request_id: str, queries: Sequence[str], documents: Sequence[str]
    ) -> pb.ScoreRequest:
        return pb.ScoreRequest(
            request_id=request_id,
            model=self.model,
            queries=queries,
            documents=documents,
            instruction=self.instruction or "",
            max_document_tokens=self.max_tokens_per_doc or 0,
        )


class RerankRequest(_Common, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request as parameters.RERANK describes it."""

    query: _Words
    documents: Annotated[list[str | TextDocument], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: _Count | None = None
    return_documents: bool | None = None

    def to_engine(self, request_id: str) -> pb.ScoreRequest:
        """This request in the engine's words."""
        return self._to_engine(request_id, [self.query], [_text(d) for d in self.documents])

    def results(self, scores: Sequence[float]) -> list[RankedDocument]:
        """The best `top_n`, best first; of equal ones the earlier document first."""
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return [
            RankedDocument(
                index,
                scores[index],
                TextDocument(_text(self.documents[index])) if self.return_documents else UNSET,
            )
            for index in order[: self.top_n]
        ]


class ScoreRequest(_Common, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request as parameters.SCORE describes it."""

    text_1: _Words | _Texts
    text_2: _Words | _Texts

    def to_engine(self, request_id: str) -> pb.ScoreRequest:
        """This request in the engine's words. Raises RequestError."""
        first = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        second = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if len(first) not in (1, len(second)):
            raise RequestError(
                f"`text_1` has {len(first)} texts, `text_2` {len(second)}",
                param="text_1",
                hint="give one text for all of text_2, or one for each",
                code="invalid_value",
            )
        return self._to_engine(request_id, first, second)


class RankedDocument(msgspec.Struct, frozen=True):
    index: int
    relevance_score: float
    document: TextDocument | UnsetType = UNSET


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    model: str
    results: list[RankedDocument]
    usage: EmbeddingUsage


class ScoreOut(msgspec.Struct, frozen=True):
    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreList(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreOut]
    usage: EmbeddingUsage


def _text(document: str | TextDocument) -> str:
    return document if isinstance(document, str) else document.text
