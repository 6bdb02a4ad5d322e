"""/v1/models as Anthropic's API has it: the models that can be named in /v1/messages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.errors import RequestError

Lifecycle = Literal["active", "deprecated", "retired"]


class ModelsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of the list is asked for."""

    after_id: str | None = None
    before_id: str | None = None
    lifecycle: list[Lifecycle] = []
    limit: Annotated[int, Meta(ge=1, le=1000)] = 20


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ModelInfo(msgspec.Struct, frozen=True):
    """One model. What Anthropic says only of its own models is null."""

    id: str
    created_at: str
    display_name: str
    max_input_tokens: int
    max_tokens: int
    capabilities: None = None
    deprecated_at: None = None
    lifecycle: Literal["active"] = "active"
    line: None = None
    retires_at: None = None
    type: Literal["model"] = "model"


class ModelPage(msgspec.Struct, frozen=True):
    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


def info(name: str, created: int, context_length: int) -> ModelInfo:
    """The model `name`. An answer has what of the context the prompt leaves."""
    moment = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
    return ModelInfo(name, moment, name, context_length, context_length)


def page(models: Sequence[ModelInfo], query: ModelsQuery) -> ModelPage:
    """What `query` asks for of `models`, the newest first. Raises RequestError."""
    if query.after_id is not None and query.before_id is not None:
        raise RequestError(
            "`after_id` contradicts `before_id`", param="after_id", code="invalid_value"
        )
    wanted = not query.lifecycle or "active" in query.lifecycle
    ordered = sorted(models, key=lambda m: (m.created_at, m.id), reverse=True) if wanted else []
    names = [model.id for model in ordered]
    if query.before_id is not None:
        before = ordered[: _place(names, query.before_id, "before_id")]
        return _page(before[-query.limit :], more=len(before) > query.limit)
    start = 0 if query.after_id is None else _place(names, query.after_id, "after_id") + 1
    rest = ordered[start:]
    return _page(rest[: query.limit], more=len(rest) > query.limit)


def _page(models: list[ModelInfo], *, more: bool) -> ModelPage:
    first, last = (models[0].id, models[-1].id) if models else (None, None)
    return ModelPage(models, more, first, last)


def _place(names: Sequence[str], name: str, param: str) -> int:
    if name not in names:
        raise RequestError(f"there is no model {name!r}", param=param, code="invalid_value")
    return names.index(name)
