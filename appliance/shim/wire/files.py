"""Files on the wire: what is uploaded with one, and the objects."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[int, Meta(ge=3600, le=2_592_000)]
MAX_PAGE = 10_000


class FileForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of an upload as parameters.FILES describes them."""

    file: bytes
    """The name and the bytes of a part that has a file name."""
    purpose: Literal["batch"]
    expires_after_anchor: Literal["created_at"] | None = msgspec.field(
        default=None, name="expires_after[anchor]"
    )
    expires_after_seconds: Seconds | None = msgspec.field(
        default=None, name="expires_after[seconds]"
    )


class FilesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    purpose: str | None = None
    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = MAX_PAGE
    order: Literal["asc", "desc"] = "desc"


class FileObject(msgspec.Struct, frozen=True):
    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    status_details: None = None
    object: Literal["file"] = "file"


class FileList(msgspec.Struct, frozen=True):
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class DeletedFile(msgspec.Struct, frozen=True):
    id: str
    deleted: bool = True
    object: Literal["file"] = "file"
