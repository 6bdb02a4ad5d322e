"""Batches on the wire: the request, the object, and the lines of the files around it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.audit.event import Tokens
from appliance.shim.wire.files import Seconds

BatchPath = Literal[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/rerank",
    "/v1/score",
]
"""What a line may ask for. The last two are ours: OpenAI's API has no reranking."""
Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class OutputExpiresAfter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    anchor: Literal["created_at"]
    seconds: Seconds


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request as parameters.BATCHES describes it."""

    input_file_id: str
    endpoint: BatchPath
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None


class BatchesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


class BatchErrorOut(msgspec.Struct, frozen=True):
    """Why an input file cannot be a batch."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(msgspec.Struct, frozen=True):
    data: list[BatchErrorOut]
    object: Literal["list"] = "list"


class RequestCounts(msgspec.Struct, frozen=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchInputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class BatchOutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True):
    """Of the lines that ended well: what they were billed."""

    input_tokens: int = 0
    input_tokens_details: BatchInputDetails = BatchInputDetails()
    output_tokens: int = 0
    output_tokens_details: BatchOutputDetails = BatchOutputDetails()
    total_tokens: int = 0


class BatchObject(msgspec.Struct, kw_only=True):
    id: str
    endpoint: BatchPath
    input_file_id: str
    completion_window: Literal["24h"]
    created_at: int
    expires_at: int
    status: Status = "validating"
    model: str | None = None
    errors: BatchErrors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage = BatchUsage()
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None
    """Extension: what was asked."""
    object: Literal["batch"] = "batch"


class BatchList(msgspec.Struct, frozen=True):
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class InputLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request of an input file."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: str
    url: str
    body: msgspec.Raw


class InputBody(msgspec.Struct, frozen=True):
    """What of a line's body is looked at before it runs."""

    model: str
    stream: bool | None = None
    background: bool | None = None


class WholeLine(InputLine, frozen=True, forbid_unknown_fields=True):
    """The same, with what of its body is looked at."""

    body: InputBody  # type: ignore[assignment]  # Raw is what runs, this is what is examined


class LineResponse(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct, frozen=True):
    code: str
    message: str


class OutputLine(msgspec.Struct, frozen=True):
    """What became of a line, in the output file or the error file."""

    id: str
    custom_id: str
    response: LineResponse | None
    error: LineError | None


_LINE_ENDS = "\x85\u2028\u2029"
"""Of Unicode; those of ASCII are escaped in JSON anyway."""


def one_line(line: OutputLine) -> bytes:
    """`line` in its file, also for readers that end lines where Unicode does, as `str.splitlines`
    of Python: these characters stand in strings only, where an escape means the same."""
    text = msgspec.json.encode(line)
    for character in _LINE_ENDS:
        text = text.replace(character.encode(), f"\\u{ord(character):04x}".encode())
    return text + b"\n"


def usage_of(tokens: Tokens) -> BatchUsage:
    """`tokens` as a batch shows them."""
    return BatchUsage(
        tokens.prompt,
        BatchInputDetails(tokens.cached),
        tokens.generated,
        BatchOutputDetails(tokens.reasoning),
        tokens.prompt + tokens.generated,
    )
