"""The first API key: made once, shown at the end, lost in no crash.

Owns a pending file, readable by root alone, from before the key exists until it was shown. A
killed installer finds it again and shows the same key; a node that ever had a key gets no other.
"""

from __future__ import annotations

import msgspec

from appliance.access import KeyInfo, KeyStore, NewKey, new_key
from appliance.config import Layout
from appliance.errors import NotFoundError
from appliance.fsops import fsync_dir, write_durable
from installer.proof import KEY_NAME as PROOF_KEY_NAME

NAME = "first"
_PENDING = "first-key.json"


class _Pending(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    created: int
    secret: str


def offer_first_key(layout: Layout) -> str | None:
    """The secret to show, or None if this node has had keys before."""
    with KeyStore(layout.keys_db) as keys:
        pending = _read(layout)
        if pending is None:
            if any(key.name != PROOF_KEY_NAME for key in keys.list()):
                return None
            pending = _write(layout, new_key(NAME))
        try:
            keys.get(pending.id)
        except NotFoundError:
            keys.add(NewKey(KeyInfo(pending.id, NAME, pending.created), pending.secret))
        return pending.secret


def first_key_was_shown(layout: Layout) -> None:
    """Forget the secret, now that the operator has it."""
    path = layout.install_state / _PENDING
    if path.exists():
        path.unlink()
        fsync_dir(path.parent)


def _read(layout: Layout) -> _Pending | None:
    try:
        data = (layout.install_state / _PENDING).read_bytes()
    except FileNotFoundError:
        return None
    return msgspec.json.decode(data, type=_Pending)


def _write(layout: Layout, key: NewKey) -> _Pending:
    pending = _Pending(key.info.id, key.info.created, key.secret)
    write_durable(layout.install_state / _PENDING, msgspec.json.encode(pending))
    return pending
