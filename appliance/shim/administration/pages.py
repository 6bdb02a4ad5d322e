"""Lists in pages: a cursor is the id of an object, the next page begins behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

import msgspec

from appliance.errors import RequestError
from appliance.shim.administration.query import Query

LIMIT = 20
MOST = 100


class Listed(Protocol):
    """Something with an id."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Listed)


class Page(msgspec.Struct, frozen=True):
    """A page of a list."""

    data: Sequence[msgspec.Struct]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None
    object: Literal["list"] = "list"


def behind(items: Sequence[T], query: Query) -> tuple[Sequence[T], bool]:
    """The items behind the cursor `after`, at most `limit`; whether there are more.

    Raises RequestError for a cursor that is no item.
    """
    limit = query.number("limit", LIMIT, 1, MOST)
    after = query.text("after")
    if after is not None:
        places = [place for place, item in enumerate(items) if item.id == after]
        if not places:
            raise RequestError(
                f"`after` is not the id of an entry: {after!r}", param="after", code="invalid_value"
            )
        items = items[places[0] + 1 :]
    return items[:limit], len(items) > limit


def page(shown: Sequence[msgspec.Struct], ids: Sequence[str], *, more: bool) -> Page:
    """`shown`, whose ids are `ids`, as a page."""
    return Page(shown, more, ids[0] if ids else None, ids[-1] if ids else None)
