"""Every operation of the endpoint: the one table that routes, keys and /openapi.json follow.

Owns what there is and who may ask; handlers are bound to it in routes.py. An operation that is
not here cannot be reached, and one that is here is described. The administration's part of it is
in administration/operations.py.
"""

from __future__ import annotations

import re

from appliance.shim.administration.operations import ADMINISTRATION_OPERATIONS
from appliance.shim.api.health import Health, Readiness
from appliance.shim.api.models import ModelList, ModelOut
from appliance.shim.api.stored_responses import ItemsQuery, NoQuery, RetrieveQuery
from appliance.shim.layers.authorise import ADMINISTRATION
from appliance.shim.operation import Operation
from appliance.shim.wire import parameters as table
from appliance.shim.wire.anthropic import CountRequest, MessagesRequest
from appliance.shim.wire.anthropic_message import MessageEvent, MessageOut, MessageTokens
from appliance.shim.wire.anthropic_models import ModelInfo, ModelPage
from appliance.shim.wire.batches import BatchesQuery, BatchList, BatchObject, BatchRequest
from appliance.shim.wire.chat import ChatChunk, ChatCompletion, ChatRequest
from appliance.shim.wire.completions import Completion, CompletionRequest
from appliance.shim.wire.embeddings import EmbeddingList, EmbeddingRequest
from appliance.shim.wire.files import DeletedFile, FileForm, FileList, FileObject, FilesQuery
from appliance.shim.wire.rerank import Ranking, RerankRequest, ScoreList, ScoreRequest
from appliance.shim.wire.response_object import (
    DeletedResponse,
    ItemList,
    ResponseEvent,
    ResponseObject,
)
from appliance.shim.wire.responses import ResponsesRequest
from appliance.shim.wire.tokens import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
)

OPERATIONS = (
    Operation(
        "POST",
        "/v1/chat/completions",
        "Chat, whole or streamed; tools, reasoning, log probabilities",
        ChatCompletion,
        body=ChatRequest,
        parameters=table.CHAT,
        stream=ChatChunk,
    ),
    Operation(
        "POST",
        "/v1/responses",
        "Chat as items: answers, reasoning and tool calls, whole, streamed or in the background",
        ResponseObject,
        body=ResponsesRequest,
        parameters=table.RESPONSES,
        stream=ResponseEvent,
    ),
    Operation(
        "GET",
        "/v1/responses/{response_id}",
        "A stored response",
        ResponseObject,
        query=RetrieveQuery,
    ),
    Operation(
        "DELETE",
        "/v1/responses/{response_id}",
        "Deletes a stored response; cancels it first if it is still computed",
        DeletedResponse,
        query=NoQuery,
    ),
    Operation(
        "POST",
        "/v1/responses/{response_id}/cancel",
        "Stops a response that is computed in the background",
        ResponseObject,
        query=NoQuery,
    ),
    Operation(
        "GET",
        "/v1/responses/{response_id}/input_items",
        "What a stored response was made from, earlier turns included",
        ItemList,
        query=ItemsQuery,
    ),
    Operation(
        "POST",
        "/v1/messages",
        "Anthropic's API for chat, whole or streamed",
        MessageOut,
        body=MessagesRequest,
        parameters=table.MESSAGES,
        stream=MessageEvent,
        dialect="anthropic",
    ),
    Operation(
        "POST",
        "/v1/messages/count_tokens",
        "How many tokens such a request would have",
        MessageTokens,
        body=CountRequest,
        parameters=table.COUNT_TOKENS,
        dialect="anthropic",
    ),
    Operation(
        "POST",
        "/v1/completions",
        "Goes on from a text or from token ids, whole or streamed",
        Completion,
        body=CompletionRequest,
        parameters=table.COMPLETIONS,
        stream=Completion,
    ),
    Operation(
        "POST",
        "/v1/embeddings",
        "Vectors for texts or token ids",
        EmbeddingList,
        body=EmbeddingRequest,
        parameters=table.EMBEDDINGS,
    ),
    Operation(
        "POST",
        "/v1/rerank",
        "Documents in the order in which they answer a query",
        Ranking,
        body=RerankRequest,
        parameters=table.RERANK,
    ),
    Operation(
        "POST",
        "/v2/rerank",
        "The same, for clients that put the version there",
        Ranking,
        body=RerankRequest,
        parameters=table.RERANK,
    ),
    Operation(
        "POST",
        "/v1/score",
        "How well texts answer other texts",
        ScoreList,
        body=ScoreRequest,
        parameters=table.SCORE,
    ),
    Operation(
        "POST",
        "/v1/files",
        "Uploads the requests of a batch",
        FileObject,
        form=FileForm,
        parameters=table.FILES,
        statuses=(429,),
    ),
    Operation("GET", "/v1/files", "The files of this key", FileList, query=FilesQuery),
    Operation("GET", "/v1/files/{file_id}", "One of them", FileObject, query=NoQuery),
    Operation(
        "DELETE",
        "/v1/files/{file_id}",
        "Deletes a file",
        DeletedFile,
        query=NoQuery,
        statuses=(409,),
    ),
    Operation(
        "GET",
        "/v1/files/{file_id}/content",
        "Its bytes",
        "application/octet-stream",
        query=NoQuery,
    ),
    Operation(
        "POST",
        "/v1/batches",
        "Runs the requests of a file while there is room, at the batch price",
        BatchObject,
        body=BatchRequest,
        parameters=table.BATCHES,
    ),
    Operation("GET", "/v1/batches", "The batches of this key", BatchList, query=BatchesQuery),
    Operation("GET", "/v1/batches/{batch_id}", "One of them", BatchObject, query=NoQuery),
    Operation(
        "POST",
        "/v1/batches/{batch_id}/cancel",
        "Stops a batch; what is finished is kept",
        BatchObject,
        query=NoQuery,
        statuses=(409,),
    ),
    Operation(
        "POST",
        "/tokenize",
        "The token ids of a text or of a conversation",
        TokenizeAnswer,
        body=TokenizeRequest,
        parameters=table.TOKENIZE,
    ),
    Operation(
        "POST",
        "/detokenize",
        "The text of token ids",
        DetokenizeAnswer,
        body=DetokenizeRequest,
        parameters=table.DETOKENIZE,
    ),
    Operation(
        "GET",
        "/v1/models",
        "The models that are served now",
        ModelList,
        anthropic_answer=ModelPage,
    ),
    Operation(
        "GET",
        "/v1/models/{model}",
        "One of them, or 404",
        ModelOut,
        anthropic_answer=ModelInfo,
    ),
    *ADMINISTRATION_OPERATIONS,
    Operation("GET", "/health", "That the endpoint lives, and what works", Health, public=True),
    Operation(
        "GET",
        "/ready",
        "Whether requests are served: 503 with the reasons if not",
        Readiness,
        public=True,
    ),
    Operation(
        "GET",
        "/metrics",
        "Prometheus metrics",
        "text/plain|application/openmetrics-text",
        public=True,
    ),
    Operation(
        "GET",
        "/openapi.json",
        "This API as an OpenAPI document",
        dict[str, object],
        public=True,
    ),
    Operation("GET", "/docs", "This API as a page to read", "text/html", public=True),
)
PUBLIC = frozenset(operation.path for operation in OPERATIONS if operation.public)
"""Paths that need no key."""
UPLOADS = frozenset(o.path for o in OPERATIONS if o.form is not None)
"""Paths whose bodies are files."""
ANTHROPIC = frozenset(o.path for o in OPERATIONS if o.dialect == "anthropic")
"""Paths whose callers speak Anthropic's API."""
SHARED = frozenset(o.path for o in OPERATIONS if o.anthropic_answer is not None) | {"unknown"}
"""Paths that both APIs have: a caller's headers say which it speaks. What is not here is one."""
_WITH_SLASHES = frozenset({"model"})
"""Variable parts that may hold slashes."""
_FIXED = frozenset(operation.path for operation in OPERATIONS if not operation.names)


def pattern_of(path: str) -> str:
    """`path` as the router reads it."""
    return re.sub(r"{(\w+)}", lambda m: f"{{{m[1]}:path}}" if m[1] in _WITH_SLASHES else m[0], path)


def _expression_of(path: str) -> re.Pattern[str]:
    parts = re.split(r"{(\w+)}", path)
    texts = [
        (".*" if part in _WITH_SLASHES else "[^/]+") if index % 2 else re.escape(part)
        for index, part in enumerate(parts)
    ]
    return re.compile("".join(texts), re.DOTALL)


_VARIABLE = {
    operation.path: _expression_of(operation.path) for operation in OPERATIONS if operation.names
}


def route_of(path: str) -> str:
    """The name under which `path` is counted and recorded: never the caller's own words."""
    if path in _FIXED:
        return path
    matching = (name for name, expression in _VARIABLE.items() if expression.fullmatch(path))
    # What is unknown below the administration's prefix is still the administration's.
    unknown = f"{ADMINISTRATION}unknown" if path.startswith(ADMINISTRATION) else "unknown"
    return next(matching, unknown)
