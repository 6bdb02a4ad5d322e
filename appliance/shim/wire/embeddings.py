"""/v1/embeddings on the wire."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.completions import inputs
from appliance.shim.wire.sampling import TokenId
from appliance.shim.wire.usage import EmbeddingUsage

MAX_INPUTS = 2048


class EmbeddingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request as parameters.EMBEDDINGS describes it."""

    model: str
    input: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    user: str | None = None

    def to_engine(self, request_id: str) -> pb.EmbedRequest:
        """This request in the engine's words. Raises RequestError."""
        given = inputs(self.input, "input", MAX_INPUTS)
        return pb.EmbedRequest(
            request_id=request_id,
            model=self.model,
            inputs=[_input(item) for item in given],
            dimensions=self.dimensions or 0,
        )


def _input(item: str | list[int]) -> pb.EmbedInput:
    if isinstance(item, str):
        return pb.EmbedInput(text=item)
    return pb.EmbedInput(tokens=pb.TokenIds(ids=item))


class EmbeddingOut(msgspec.Struct, frozen=True):
    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingList(msgspec.Struct, frozen=True):
    data: list[EmbeddingOut]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"
