"""Items that a request only names: they are read again from the stored responses that said them.

The id of an item has its response's in it. Owns the looking up; refuses a reference where nothing
is stored, and one to an item that is not there, or is another key's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from appliance.errors import NotFoundError, RequestError
from appliance.shim.response_store import ResponseStore
from appliance.shim.wire.response_items import Item, ItemReference


class _KeptOutput(msgspec.Struct, frozen=True):
    output: list[Item]


_BODY = msgspec.json.Decoder(_KeptOutput)


async def resolved(
    items: Sequence[Item | ItemReference], store: ResponseStore | None, owner: str
) -> list[Item]:
    """`items`, with those that are only named as they were said. Raises RequestError."""
    return [
        await _said(item.id, f"input[{index}]", store, owner)
        if isinstance(item, ItemReference)
        else item
        for index, item in enumerate(items)
    ]


async def _said(item_id: str, place: str, store: ResponseStore | None, owner: str) -> Item:
    if store is None:
        raise RequestError(
            "an item cannot be named by its id: this appliance keeps no content",
            param=f"{place}.type",
            hint="send the item itself; programs do so that are told `store: false`",
            code="unsupported_parameter",
        )
    _, _, rest = item_id.partition("_")
    with suppress(NotFoundError):
        row = await store.get(owner, f"resp_{rest.partition('_')[0]}")
        for item in _BODY.decode(row.body).output:
            if item.id == item_id:
                return item
    raise RequestError(
        "no stored response has an item of this id",
        param=f"{place}.id",
        hint="send the item itself",
        code="invalid_value",
    )
