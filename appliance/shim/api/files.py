"""/v1/files: files are uploaded, listed, read and deleted.

What has content, or changes what is kept, is on record like an answer; looking at names is not,
like listing models.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Literal, cast

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from appliance.errors import RequestError, UnavailableError
from appliance.shim.answer import NO_TOKENS, send_document, send_recorded
from appliance.shim.api.stored_responses import NoQuery
from appliance.shim.batches.batches import Batches
from appliance.shim.batches.file_store import FileStore, StoredFile
from appliance.shim.batches.upload import Upload
from appliance.shim.exchange import exchange_of
from appliance.shim.lifeline import DisconnectedError
from appliance.shim.multipart import FormReader, boundary_of
from appliance.shim.services import Services
from appliance.shim.wire import files as wire
from appliance.shim.wire.decode import decode_query


def kept_here(services: Services) -> Batches:
    """Files and batches. Raises RequestError if the operator keeps none."""
    if services.batches is None:
        raise RequestError(
            "this appliance keeps no files",
            hint="have api.store_files switched on",
            code="files_not_kept",
        )
    return services.batches


class _Files:
    """What the endpoints of files share."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def _store(self) -> FileStore:
        return kept_here(self._services).files

    async def _file(self, scope: Scope) -> StoredFile:
        store = self._store()
        decode_query(scope, NoQuery)
        return await store.get(exchange_of(scope).owner, scope["path_params"]["file_id"])


class CreateFileEndpoint(_Files):
    """POST /v1/files: the body is read as it is written, in pieces (layers/limit_body.py)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        upload = Upload(
            self._store(),
            exchange.owner,
            most=self._services.settings.max_file_bytes,
            seconds=kept_here(self._services).file_seconds,
        )
        reader = FormReader(boundary_of(Headers(scope=scope).get("content-type", "")))
        await upload.begin()
        try:
            await _read(upload, reader, receive)
            file = await upload.end()
            await send_recorded(self._services, exchange, send, _out(file))
        except BaseException:
            await asyncio.shield(upload.discard())
            raise


async def _read(upload: Upload, reader: FormReader, receive: Receive) -> None:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        await upload.feed(reader, message.get("body", b""))
        more = message.get("more_body", False)
    reader.end()


class FilesEndpoint(_Files):
    """GET /v1/files."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        store = self._store()
        query = decode_query(scope, wire.FilesQuery)
        rows, more = await store.page(
            exchange_of(scope).owner, query.purpose, query.after, query.limit, query.order
        )
        data = [_out(row) for row in rows]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        await send_document(send, wire.FileList(data, first, last, more))


class FileEndpoint(_Files):
    """GET /v1/files/{file_id}."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_document(send, _out(await self._file(scope)))


class DeleteFileEndpoint(_Files):
    """DELETE /v1/files/{file_id}."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        file = await self._file(scope)
        await self._store().delete(file.owner, file.id)
        await send_recorded(self._services, exchange, send, wire.DeletedFile(file.id))


class FileContentEndpoint(_Files):
    """GET /v1/files/{file_id}/content."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        file = await self._file(scope)
        bill = await self._services.accounting.admit(exchange)
        await bill.close("ok", NO_TOKENS, status=200)
        headers = [
            (b"content-type", b"application/octet-stream"),
            (b"content-length", str(file.bytes).encode("ascii")),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] != "HEAD":
            await self._send_pieces(file, send)
        await send({"type": "http.response.body", "body": b""})

    async def _send_pieces(self, file: StoredFile, send: Send) -> None:
        left = file.bytes
        async with aclosing(self._store().pieces(file.id)) as pieces:
            async for piece in pieces:
                left -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        if left:
            # The caller sees fewer bytes than were announced, and so that they are not all.
            raise UnavailableError("the file was deleted meanwhile", code="storage")


def _out(file: StoredFile) -> wire.FileObject:
    return wire.FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created,
        expires_at=file.expires,
        filename=file.name,
        purpose=cast(Literal["batch", "batch_output"], file.purpose),
    )
