"""The names under which APIs are allowed to a key.

A name is the first word of a route behind its version: /v1/chat/completions is `chat`. A route
added later is refused to a key that has a list, until the list names it.
"""

from __future__ import annotations

import re

_VERSION = re.compile(r"^/(v[12]/)?")

APIS = (
    "chat",
    "completions",
    "responses",
    "messages",
    "embeddings",
    "rerank",
    "score",
    "tokenize",
    "detokenize",
    "files",
    "batches",
)
"""What a key's list may hold. Listing models is open to every API key."""


def api_of(route: str) -> str:
    """The API that the route template `route` belongs to."""
    return _VERSION.sub("", route).partition("/")[0]
