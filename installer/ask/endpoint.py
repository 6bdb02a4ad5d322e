"""The node's own HTTP endpoint, as `appliance ask` calls it.

Owns two calls, embeddings and a streamed chat, and the translation of what the endpoint says into
the error tree. It speaks with the standard library, which knows nothing of proxies: the endpoint is
on this machine. `tls` is how, where it does not speak in clear.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import numpy as np

from appliance.errors import (
    ApplianceError,
    CapacityError,
    NotFoundError,
    RequestError,
    UnavailableError,
    UsageError,
)
from installer.ask.reader import Vectors

SECONDS = 120.0
"""Longest silence of the endpoint; while it computes it sends comment lines."""

TEXTS = 512
"""Most texts in one request."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of an answer: of its text, or of the reasoning before it."""

    text: str = ""
    reasoning: str = ""


class Endpoint:
    """The endpoint at `base_url`, called with the API key `secret`.

    Each call raises UnavailableError if nothing answers, NotFoundError for an unknown model,
    UsageError for a refused key, CapacityError if the node is full.
    """

    def __init__(self, base_url: str, secret: str, tls: ssl.SSLContext | None = None) -> None:
        self._url = urlsplit(base_url)
        self._tls = tls
        self._headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}

    def embed(self, model: str, texts: Sequence[str]) -> Vectors:
        """Unit vectors of `texts`: [texts, dimensions]."""
        parts = [texts[i : i + TEXTS] for i in range(0, len(texts), TEXTS)]
        return np.concatenate([self._embed(model, part) for part in parts])

    def chat(
        self, model: str, messages: Sequence[Mapping[str, str]], *, think: bool
    ) -> Iterator[Piece]:
        """The answer to `messages`, as it comes; always the likeliest one."""
        body = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "temperature": 0,
            "chat_template_kwargs": {"enable_thinking": think},
        }
        with self._post("/chat/completions", body) as response:
            for event in _events(response):
                for choice in event["choices"]:
                    delta = choice["delta"]
                    yield Piece(delta.get("content", ""), delta.get("reasoning_content", ""))

    def _embed(self, model: str, texts: Sequence[str]) -> Vectors:
        body = {"model": model, "input": list(texts), "encoding_format": "base64"}
        with self._post("/embeddings", body) as response:
            rows = json.load(response)["data"]
        raw = [base64.b64decode(row["embedding"]) for row in rows]
        vectors = np.array([np.frombuffer(row, dtype="<f4") for row in raw], dtype=np.float32)
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    @contextmanager
    def _post(self, path: str, body: Json) -> Iterator[http.client.HTTPResponse]:
        assert self._url.hostname
        host, port = self._url.hostname, self._url.port
        connection = (
            http.client.HTTPConnection(host, port, timeout=SECONDS)
            if self._tls is None
            else http.client.HTTPSConnection(host, port, timeout=SECONDS, context=self._tls)
        )
        try:
            connection.request("POST", self._url.path + path, json.dumps(body), self._headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                _refuse(response.status, response.read())
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(
                f"the endpoint at {self._url.netloc} does not answer: {error or 'it hung up'}",
                hint="`appliance status` says which service is down",
            ) from error
        finally:
            connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[Json]:
    """The documents of a server-sent event stream, up to `[DONE]`."""
    for line in response:
        name, _, value = line.decode("utf-8").rstrip("\r\n").partition(": ")
        if name != "data":
            continue
        if value == "[DONE]":
            return
        event: Json = json.loads(value)
        if "error" in event:
            raise UnavailableError(
                f"the answer broke off: {event['error']['message']}", hint="ask again"
            )
        yield event
    raise http.client.IncompleteRead(b"")


def _refuse(status: int, body: bytes) -> NoReturn:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the endpoint answered with status {status}"
    raise _error(status, message)


def _error(status: int, message: str) -> ApplianceError:
    if status == http.client.UNAUTHORIZED:
        return UsageError(message, hint="APPLIANCE_API_KEY must be a valid key, or not be set")
    if status == http.client.NOT_FOUND:
        return NotFoundError(message, hint="`appliance models list` shows the models there are")
    if status == http.client.TOO_MANY_REQUESTS:
        return CapacityError(message, hint="try again when the node is less busy")
    if status >= http.client.INTERNAL_SERVER_ERROR:
        return UnavailableError(message, hint="`appliance status` says what is wrong")
    return RequestError(message)
