"""Keys that are none, are no more, or may not."""

from __future__ import annotations

from tests.hostile.oracle import Case

_ASK = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
_MESSAGE = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
_VERSION = ("anthropic-version", "2023-06-01")


def _with(name: str, value: str, *status: int) -> Case:
    return Case(name, body=_ASK, headers=[("Authorization", value)], status=status or (401,))


CASES = [
    Case("no key", body=_ASK, key="", status=(401,)),
    _with("an empty header", ""),
    _with("a scheme alone", "Bearer"),
    _with("another scheme", "Basic c2s6eA=="),
    _with("an unknown key", "Bearer sk-unknown"),
    _with("the form of a key", "Bearer sk-aaaaaaaa-" + "a" * 40),
    _with("letters beyond ASCII", "Bearer é☃"),
    _with("a key of 7 kB", "Bearer " + "a" * 7000, 401, 431),
    _with("quotes", "Bearer ' OR '1'='1"),
    _with("a path", "Bearer ../../keys.db"),
    _with("spaces inside", "Bearer sk-a b"),
    Case(
        "a key in the query",
        path="/v1/chat/completions?api_key=@KEY@",
        key="",
        body=_ASK,
        status=(401,),
    ),
    Case(
        "two keys",
        body=_ASK,
        status=(401,),
        headers=[("Authorization", "Bearer @KEY@"), ("Authorization", "Bearer sk-other")],
    ),
    Case("a revoked key", body=_ASK, key="revoked", status=(401,)),
    Case("an expired key", body=_ASK, key="expired", status=(401,)),
    Case("a model that the key may not use", body=_ASK, key="bound", status=(403,)),
    Case(
        "that model in a completion",
        path="/v1/completions",
        key="bound",
        status=(403,),
        body={"model": "chat", "prompt": "x", "max_tokens": 1},
    ),
    Case(
        "that model's tokens",
        path="/tokenize",
        key="bound",
        status=(403,),
        body={"model": "chat", "prompt": "x"},
    ),
    Case(
        "that model by Anthropic's API",
        path="/v1/messages",
        key="bound",
        status=(403,),
        body=_MESSAGE,
        headers=[_VERSION],
        dialect="anthropic",
    ),
    Case(
        "that model looked up", method="GET", path="/v1/models/chat", key="bound", status=(403, 404)
    ),
    Case(
        "no key for Anthropic's API",
        path="/v1/messages",
        key="",
        body=_MESSAGE,
        status=(401,),
        headers=[_VERSION],
        dialect="anthropic",
    ),
    Case(
        "a wrong x-api-key",
        path="/v1/messages",
        key="",
        body=_MESSAGE,
        status=(401,),
        headers=[_VERSION, ("x-api-key", "sk-evil")],
        dialect="anthropic",
    ),
    Case(
        "administration with a plain key",
        method="GET",
        path="/v1/organization/projects",
        status=(401, 403),
    ),
    Case(
        "keys with a plain key",
        method="GET",
        path="/v1/organization/admin_api_keys",
        status=(401, 403, 404),
    ),
    Case(
        "costs with a plain key",
        method="GET",
        path="/v1/organization/costs?start_time=1",
        status=(401, 403),
    ),
    Case("somebody else's file", method="GET", path="/v1/files/file-" + "a" * 24, status=(404,)),
    Case(
        "somebody else's batch", method="GET", path="/v1/batches/batch_" + "a" * 24, status=(404,)
    ),
    Case(
        "somebody else's response",
        method="GET",
        path="/v1/responses/resp_" + "a" * 24,
        status=(404,),
    ),
]
