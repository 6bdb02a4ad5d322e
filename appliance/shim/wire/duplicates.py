"""Refusing a JSON body in which a name stands twice in one object.

Two readers of such a body may see two different requests: a proxy that filters by the first and
an endpoint that obeys the last. Owns that one check, on a body that was decoded already.
"""

from __future__ import annotations

import json

from appliance.errors import RequestError


def refuse_duplicates(body: bytes) -> None:
    """Raise RequestError naming the first name that stands twice. `body` is valid JSON."""
    _DECODER.decode(body.decode("utf-8", "surrogatepass"))


def _check(pairs: list[tuple[str, object]]) -> None:
    if len(pairs) < 2:
        return
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise RequestError(
                f"`{name[:100]}` stands twice in one object",
                param=name[:100],
                hint="send each name once",
                code="duplicate_name",
            )
        seen.add(name)


def _nothing(_number: str) -> None:
    """Numbers do not matter here, however long they are."""


_DECODER = json.JSONDecoder(object_pairs_hook=_check, parse_int=_nothing, parse_float=_nothing)
