"""The state file: how far the tree on disk reaches, written before the checkpoint says so.

Owns `state.json`. Between this file and the checkpoint a crash may come; then the state is
ahead and the next publication catches up. It is never behind.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Literal

import msgspec

from appliance.errors import AuditError

STATE_NAME = "state.json"


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the writer needs to go on without reading the whole log."""

    format: Literal["appliance-audit-state/1"] = "appliance-audit-state/1"
    size: int
    root: str
    """Root hash at `size`, base64."""
    journal: int
    """First record of the oldest segment that is kept."""
    open_from: int
    """The oldest REQ without its RES; `size` if there is none."""

    @classmethod
    def of(cls, size: int, root: bytes, *, journal: int, open_from: int) -> State:
        encoded = base64.b64encode(root).decode()
        return cls(size=size, root=encoded, journal=journal, open_from=open_from)

    def encoded(self) -> bytes:
        return msgspec.json.encode(self, order="sorted")


def decode_state(data: bytes) -> State:
    """Read canonical state bytes. Raises AuditError."""
    try:
        state = msgspec.json.decode(data, type=State)
    except ValueError as error:  # msgspec's own errors, and UnicodeDecodeError
        raise AuditError(f"the state is malformed: {error}", path=STATE_NAME) from error
    ordered = 0 <= state.journal <= state.size and 0 <= state.open_from <= state.size
    if state.encoded() != data or not ordered:
        raise AuditError("the state is malformed", path=STATE_NAME)
    return state


def read_state(directory: Path) -> State:
    """The state in the log `directory`. Raises AuditError, OSError."""
    return decode_state((directory / STATE_NAME).read_bytes())
