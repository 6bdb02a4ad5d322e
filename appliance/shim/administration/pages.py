"""Lists in pages: a cursor is the id of an object, the next page begins behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Generic, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta

from appliance.errors import RequestError

LIMIT = 20
Limit = Annotated[int, Meta(ge=1, le=100)]


class Listed(Protocol):
    """Something with an id."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Listed)
S = TypeVar("S", bound=msgspec.Struct)


class Page(msgspec.Struct, Generic[S], frozen=True):
    """A page of a list."""

    data: Sequence[S]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None
    object: Literal["list"] = "list"


def behind(items: Sequence[T], after: str | None, limit: int) -> tuple[Sequence[T], bool]:
    """The items behind the cursor `after`, at most `limit`; whether there are more.

    Raises RequestError for a cursor that is no item.
    """
    if after is not None:
        places = [place for place, item in enumerate(items) if item.id == after]
        if not places:
            raise RequestError(
                f"`after` is not the id of an entry: {after!r}", param="after", code="invalid_value"
            )
        items = items[places[0] + 1 :]
    return items[:limit], len(items) > limit


def page(shown: Sequence[S], ids: Sequence[str], *, more: bool) -> Page[S]:
    """`shown`, whose ids are `ids`, as a page."""
    return Page(shown, more, ids[0] if ids else None, ids[-1] if ids else None)
