"""/v1/organization/admin_api_keys: list, create, retrieve and delete the keys of this API.

Each change is recorded like the command's: creating first the record, then the key; deleting
first the key, then the record.
"""

from __future__ import annotations

import time
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.types import Receive, Scope, Send

from appliance.access import KeyInfo, KeyStore, new_key
from appliance.errors import NotFoundError, RequestError, UsageError
from appliance.shim.accounting import Accounting
from appliance.shim.administration.names import Name
from appliance.shim.administration.pages import LIMIT, Limit, behind, page
from appliance.shim.answer import send_document
from appliance.shim.body import read_body
from appliance.shim.exchange import exchange_of
from appliance.shim.wire.decode import decode, decode_query

_TEN_YEARS = 10 * 366 * 86_400


class Owner(msgspec.Struct, frozen=True):
    """Who answers for a key, as the operator wrote it."""

    id: str
    name: str
    created_at: int
    type: Literal["user"] = "user"
    object: Literal["organization.user"] = "organization.user"
    role: Literal["owner"] = "owner"


class AdminKey(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    owner: Owner
    last_used_at: None = None
    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"


class NewAdminKey(AdminKey, frozen=True, kw_only=True):
    value: str
    """The whole key, this one time."""


class DeletedAdminKey(msgspec.Struct, frozen=True):
    id: str
    deleted: bool = True
    object: Literal["organization.admin_api_key.deleted"] = "organization.admin_api_key.deleted"


class NewAdminKeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Name
    expires_in_seconds: Annotated[int, Meta(ge=1, le=_TEN_YEARS)] | None = None


class AdminKeysQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: str | None = None
    limit: Limit = LIMIT
    order: Literal["asc", "desc"] = "asc"


_DECODER = msgspec.json.Decoder(NewAdminKeyRequest)


class AdminKeysEndpoint:
    """The methods of the collection, and of one key."""

    def __init__(self, keys: KeyStore, accounting: Accounting) -> None:
        self._keys = keys
        self._accounting = accounting

    async def list(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = decode_query(scope, AdminKeysQuery)
        keys = _active(self._keys)
        if query.order == "desc":
            keys.reverse()
        shown, more = behind(keys, query.after, query.limit)
        ids = [key.id for key in shown]
        await send_document(send, page([_shown(key) for key in shown], ids, more=more))

    async def create(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode(scope, await read_body(receive), _DECODER, ())
        seconds = request.expires_in_seconds
        try:
            key = new_key(
                request.name,
                kind="admin",
                expires=None if seconds is None else int(time.time()) + seconds,
            )
        except UsageError as error:
            raise RequestError(
                error.message, hint=error.hint, param="name", code="invalid_value"
            ) from None
        await self._accounting.administer(exchange_of(scope), "keys.create", key.info.id)
        self._keys.add(key)
        known = {f: getattr(_shown(key.info), f) for f in AdminKey.__struct_fields__}
        await send_document(send, NewAdminKey(**known, value=key.secret))

    async def retrieve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_document(send, _shown(self._find(scope)))

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = self._find(scope)
        self._keys.revoke(key.id)
        await self._accounting.administer(exchange_of(scope), "keys.revoke", key.id)
        await send_document(send, DeletedAdminKey(key.id))

    def _find(self, scope: Scope) -> KeyInfo:
        key_id = scope["path_params"]["key_id"]
        for key in _active(self._keys):
            if key.id == key_id:
                return key
        raise NotFoundError(f"there is no admin key {key_id!r}", hint="list them")


def _active(keys: KeyStore) -> list[KeyInfo]:
    """Admin keys that were not deleted, oldest first."""
    return [key for key in keys.list() if key.kind == "admin" and key.revoked is None]


def _shown(key: KeyInfo) -> AdminKey:
    return AdminKey(
        id=key.id,
        name=key.name,
        redacted_value=f"{key.prefix}…",
        created_at=key.created,
        expires_at=key.expires,
        owner=Owner(key.owner or key.id, key.owner or key.name, key.created),
    )
