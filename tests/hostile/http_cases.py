"""Hostile HTTP: what no client library would send."""

from __future__ import annotations

import gzip
import json

from tests.hostile.oracle import Case

_ASK = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
_BODY = json.dumps(_ASK).encode()
_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer @KEY@\r\n"
    b"Content-Type: application/json\r\n"
)
_GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer @KEY@\r\n"
_CLOSED = (400, 0)
"""Bytes that are no HTTP may be answered by hanging up."""


def _raw(name: str, data: bytes, *status: int, method: str = "POST") -> Case:
    return Case(name, raw=data, status=status or (400,), method=method)


def _body(name: str, body: bytes, *status: int) -> Case:
    return Case(name, body=body, status=status or (400,))


def _path(name: str, path: str, *status: int, method: str = "GET") -> Case:
    return Case(name, method=method, path=path, status=status or (404,))


def _nested(depth: int) -> bytes:
    return b'{"model":"chat","metadata":' + b"[" * depth + b"]" * depth + b"}"


CASES = [
    _raw("no HTTP", b"\x00\x01\x02\x03\r\n\r\n", *_CLOSED),
    _raw(
        "a TLS hello", bytes.fromhex("1603010200010001fc0303") + bytes(500) + b"\r\n\r\n", *_CLOSED
    ),
    _raw("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", *_CLOSED),
    _raw("HTTP/0.9", b"GET /v1/models\r\n\r\n", *_CLOSED, 401),
    _raw("a version that is none", b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", *_CLOSED, 404),
    _raw("a space in the path", b"GET /v1/ models HTTP/1.1\r\nHost: localhost\r\n\r\n", *_CLOSED),
    _raw("a header without a colon", _GET + b"nonsense\r\n\r\n", *_CLOSED),
    _raw("a space before the colon", _GET + b"X-A : b\r\n\r\n", *_CLOSED),
    _raw("a folded header", _GET + b"X-A: b\r\n c\r\n\r\n", *_CLOSED),
    _raw("a zero byte in a header", _GET + b"X-A: a\x00b\r\n\r\n", *_CLOSED),
    _raw("a bare line feed in a header", _GET + b"X-A: a\nInjected\r\n\r\n", *_CLOSED),
    _raw("a header of 200 kB", _GET + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n", 400, 431, 0),
    _raw("50,000 headers", _GET + b"X-A: b\r\n" * 50_000 + b"\r\n", 400, 431, 0),
    _raw(
        "a request line of 200 kB",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        *(400, 404, 414, 0),
    ),
    _raw("no host", b"GET /v1/models HTTP/1.1\r\n\r\n", 400, 401, 421),
    _raw("two hosts", _GET + b"Host: evil.example\r\n\r\n", 400, 421),
    _raw("a negative length", _HEAD + b"Content-Length: -1\r\n\r\n", *_CLOSED),
    _raw("a length in words", _HEAD + b"Content-Length: many\r\n\r\n", *_CLOSED),
    _raw("a length of 2^64", _HEAD + b"Content-Length: 18446744073709551616\r\n\r\n", 400, 413, 0),
    _raw("a length of a terabyte", _HEAD + b"Content-Length: 1099511627776\r\n\r\n", 413),
    _raw(
        "two lengths that differ",
        _HEAD + b"Content-Length: 5\r\nContent-Length: 50\r\n\r\n" + _BODY,
        *_CLOSED,
    ),
    _raw(
        "a length and chunks",
        _HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        *_CLOSED,
    ),
    _raw("a chunk of no size", _HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", *_CLOSED),
    _raw(
        "a chunk of 2^64",
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        *_CLOSED,
    ),
    _raw("an unknown coding", _HEAD + b"Transfer-Encoding: evil\r\n\r\n0\r\n\r\n", *_CLOSED),
    _raw(
        "an upgrade that is none", _GET + b"Upgrade: evil\r\nConnection: upgrade\r\n\r\n", 200, 400
    ),
    Case(
        "a compressed body",
        body=gzip.compress(_BODY),
        headers=[("Content-Encoding", "gzip")],
        status=(400, 415),
    ),
    Case(
        "a bomb of zeros",
        body=gzip.compress(bytes(20_000_000)),
        headers=[("Content-Encoding", "gzip")],
        status=(400, 415),
    ),
    Case("a body of 9 MB", body=b" " * 9_000_000, status=(413,)),
    Case("another media type", body=_ASK, headers=[("Content-Type", "text/plain")], status=(415,)),
    Case(
        "a form",
        body=b"model=chat",
        status=(415,),
        headers=[("Content-Type", "application/x-www-form-urlencoded")],
    ),
    Case("another host", body=_ASK, headers=[("Host", "evil.example")], status=(421,)),
    Case("a host with a path", body=_ASK, headers=[("Host", "localhost/../x")], status=(400, 421)),
    Case(
        "another site's page",
        body=_ASK,
        headers=[("Origin", "https://evil.example")],
        status=(403,),
    ),
    Case("an origin of null", body=_ASK, headers=[("Origin", "null")], status=(403,)),
    _body("an empty body", b""),
    _body("half an object", b'{"model": "chat"'),
    _body("two objects", _BODY + _BODY),
    _body("no UTF-8", b'{"model": "\xff\xfe"}'),
    _body("a byte order mark", b"\xef\xbb\xbf" + _BODY),
    _body("UTF-16", _BODY.decode().encode("utf-16")),
    _body("half a surrogate pair", b'{"model": "\\ud800"}'),
    _body("NaN", b'{"model": "chat", "temperature": NaN}'),
    _body("infinity", b'{"model": "chat", "temperature": 1e999}'),
    _body("a number of 10,000 digits", b'{"model": "chat", "seed": ' + b"9" * 10_000 + b"}"),
    _body("100,000 lists in each other", _nested(100_000)),
    _body("1,000 lists in each other", _nested(1000)),
    _body("a key twice", b'{"model": "chat", "model": "letters", "messages": []}'),
    _body(
        "a key twice, inside",
        b'{"model":"chat","messages":[{"role":"user","role":"system","content":"x"}]}',
    ),
    _body("100,000 keys", json.dumps(_ASK | {f"k{i}": i for i in range(100_000)}).encode()),
    _body("a list", b"[]"),
    _body("null", b"null"),
    _path("the root", "/"),
    _path("upwards", "/v1/../../secret/key"),
    _path("upwards, encoded", "/v1/%2e%2e/%2e%2e/secret/key"),
    _path("upwards in a file's id", "/v1/files/..%2f..%2fsecret%2fkey/content"),
    _path("a zero byte in the path", "/v1/models/%00"),
    _path("no UTF-8 in the path", "/v1/models/%ff%fe"),
    _path("quotes in a file's id", "/v1/files/'%20OR%201=1--"),
    _path("markup in the path", "/v1/models/<script>alert(1)</script>"),
    _path("two slashes", "/v1//models"),
    _path("another version", "/v2/models"),
    _path("a path of 8 kB", "/v1/models/" + "a" * 8000, 404, 414),
    _path("a query that nobody knows", "/v1/files?evil=1", 400),
    _path("a query twice", "/v1/files?limit=1&limit=2", 400),
    _path("a limit of minus one", "/v1/files?limit=-1", 400),
    _path("a limit of 10^30", "/v1/files?limit=" + "9" * 30, 400),
    _path("TRACE", "/v1/models", 405, method="TRACE"),
    _path("PUT", "/v1/models", 405, method="PUT"),
    _path("DELETE of a model", "/v1/models/chat", 405, method="DELETE"),
    _path("a method that is none", "/v1/models", 400, 405, 0, method="EVIL"),
]
