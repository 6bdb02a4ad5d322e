"""The engine's parameter names in the caller's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from appliance.errors import RequestError


@contextmanager
def renamed(name: str, to: str, *, parts: bool = False) -> Iterator[None]:
    """A refusal inside that blames the engine's `name`, or a part of it, blames `to`.

    `parts`: or the same part of it, where both are lists.
    """
    try:
        yield
    except RequestError as error:
        if error.param is not None and error.param.partition("[")[0] == name:
            error.param = to + (error.param[len(name) :] if parts else "")
        raise
