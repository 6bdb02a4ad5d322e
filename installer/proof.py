"""The proof that a node serves: one real request through the whole stack.

Owns a request by a key that lives for minutes and is revoked afterwards, over HTTP like any
application's. Refuses to call a node installed because its processes run.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from appliance.access import NODE_TAG, KeyStore
from appliance.config import Config, Layout
from appliance.errors import UnavailableError
from appliance.model_store import StoredBundle
from installer import local_endpoint

KEY_NAME = "installer proof"
KEY_SECONDS = 600
ANSWER_SECONDS = 300.0
_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Proof:
    """What one request showed. `tokens`: computed for the answer, 0 for an embedding or a score."""

    model: str
    tokens: int
    seconds: float


def prove(config: Config, bundles: list[StoredBundle]) -> Proof:
    """Ask a chat model, or one of another kind if there is none.

    A node without a model can only list none. Raises UnavailableError with what was answered.
    """
    begin = time.monotonic()
    with _passing_key(config.layout) as secret:
        # What computes an adapter is proved by its base.
        bundles = [bundle for bundle in bundles if bundle.manifest.kind != "adapter"]
        if not bundles:
            _call(config, secret, "GET", "/v1/models")
            return Proof("", 0, time.monotonic() - begin)
        bundle = min(bundles, key=lambda b: b.manifest.kind != "chat")
        if bundle.manifest.kind == "chat":
            answer = _call(config, secret, "POST", "/v1/chat/completions", _chat(bundle.name))
            tokens = int(answer["usage"]["completion_tokens"])
            answered = tokens > 0
        elif bundle.manifest.kind == "rerank":
            answer = _call(config, secret, "POST", "/v1/rerank", _ranking(bundle.name))
            tokens = 0
            answered = len(answer["results"]) > 0
        else:
            answer = _call(config, secret, "POST", "/v1/embeddings", _embedding(bundle.name))
            tokens = 0
            answered = any(answer["data"][0]["embedding"])
        if not answered:
            raise _failed(f"{bundle.name} answered with nothing")
        return Proof(bundle.name, tokens, time.monotonic() - begin)


def _chat(model: str) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Are you there?"}],
        "max_tokens": _MAX_TOKENS,
        "temperature": 0,
    }


def _embedding(model: str) -> dict[str, object]:
    return {"model": model, "input": "Are you there?", "encoding_format": "float"}


def _ranking(model: str) -> dict[str, object]:
    return {"model": model, "query": "Are you there?", "documents": ["Here I am."]}


@contextmanager
def _passing_key(layout: Layout) -> Iterator[str]:
    with KeyStore(layout.keys_db) as keys:
        info, secret = keys.create(
            KEY_NAME, expires=int(time.time()) + KEY_SECONDS, tags=(NODE_TAG,)
        )
        try:
            yield secret
        finally:
            keys.revoke(info.id)


def _call(
    config: Config, secret: str, method: str, path: str, document: dict[str, object] | None = None
) -> dict[str, Any]:
    """The parsed answer."""
    connection = local_endpoint.connection(config, ANSWER_SECONDS)
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    try:
        body = None if document is None else json.dumps(document)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        said = response.read()
    except OSError as error:
        raise _failed(f"it does not answer: {error}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise _failed(f"status {response.status}, {said[:300].decode(errors='replace')}")
    answer: dict[str, Any] = json.loads(said)
    return answer


def _failed(reason: str) -> UnavailableError:
    return UnavailableError(
        f"the endpoint did not prove itself: {reason}",
        hint="`appliance status` and the daemons' messages say more; then run the command again",
        code="proof_failed",
    )
