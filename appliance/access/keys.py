"""An API key as the appliance knows it, and how a fresh one is made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from appliance.access import secret
from appliance.errors import UsageError

KeyState = Literal["active", "expired", "revoked"]
MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key, without its secret. Times are Unix seconds; None means never."""

    id: str
    name: str
    created: int
    expires: int | None = None
    revoked: int | None = None

    def state(self, now: float) -> KeyState:
        """What the key is worth at `now`."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and self.expires <= now:
            return "expired"
        return "active"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that nobody has stored yet. `secret` exists here and with the caller, nowhere else."""

    info: KeyInfo
    secret: str

    def __repr__(self) -> str:
        return f"NewKey({self.info!r})"


def new_key(name: str, *, expires: int | None = None) -> NewKey:
    """Make a key called `name` that is valid until `expires`. Raises UsageError."""
    now = int(time.time())
    if not (name.strip() == name and name.isprintable() and 0 < len(name) <= MAX_NAME):
        raise UsageError(
            f"{name!r} cannot be the name of a key",
            hint=f"use 1 to {MAX_NAME} printable characters, no space at either end",
        )
    if expires is not None and expires <= now:
        raise UsageError("the key would expire at once", hint="give a time that is still to come")
    key_id, whole = secret.generate()
    return NewKey(KeyInfo(key_id, name, now, expires), whole)
