"""Opening the responses of a node: as the operator allows, and with nothing left running."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from appliance.config import Config
from appliance.errors import UnavailableError
from appliance.shim.api.response_shape import response_error
from appliance.shim.content_database import delete_content
from appliance.shim.response_store import ResponseStore
from appliance.shim.wire.response_object import ResponseObject

_log = logging.getLogger(__name__)
_CUT_OFF = UnavailableError("the endpoint ended while this was computed", code="aborted")


@asynccontextmanager
async def kept_responses(
    config: Config, lineages: Mapping[str, str]
) -> AsyncIterator[ResponseStore | None]:
    """The store; None if there is none to be, and then nothing of an earlier one is left either.

    A response that the last end of the endpoint cut off has failed. `lineages` are those of all
    keys, by their ids.
    """
    path = config.layout.responses_db
    if not config.api.store_responses:
        delete_content(path)
        yield None
        return
    store = ResponseStore(path, config.api.stored_response_hours * 3600, lineages)
    try:
        for row in await store.interrupted():
            response = msgspec.json.decode(row.body, type=ResponseObject)
            response.status, response.error = "failed", response_error(_CUT_OFF)
            await store.update(row.id, msgspec.json.encode(response))
            _log.warning("%s was cut off when the endpoint last ended", row.id)
        yield store
    finally:
        await store.close()
