"""An API key that a command makes for itself, uses for minutes and revokes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.access import NODE_TAG, KeyStore
from appliance.config import Layout
from appliance.errors import NotFoundError

SECONDS = 600
"""It also expires by itself, should the command be killed before it can revoke it."""


@contextmanager
def passing_key(layout: Layout, name: str, *, seconds: int = SECONDS) -> Iterator[str]:
    """The secret of a key called `name` that is valid while inside, `seconds` at most.

    Raises NotFoundError if there is no node, StorageError if its keys cannot be written.
    """
    if not layout.keys_db.parent.is_dir():
        raise NotFoundError(
            f"no node is installed in {layout.root}",
            hint="name its prefix with --root, or install it from the stick",
        )
    with KeyStore(layout.keys_db) as keys:
        info, secret = keys.create(name, expires=int(time.time()) + seconds, tags=(NODE_TAG,))
        try:
            yield secret
        finally:
            keys.revoke(info.id)
