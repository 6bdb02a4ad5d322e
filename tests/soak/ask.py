"""One request as an application sends it, and everything that can be said of how it ended.

Owns the wire: a connection of its own for each request, whole answers and streams, callers that
hang up. Refuses to judge.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SECONDS = 150.0
"""Longer than anything here takes; a caller that waits so long was forgotten."""
LOST = "connection lost"
"""The code of an answer that did not come to its end, without a word why."""
ANTHROPIC = "/v1/messages"
UNREAD = frozenset({"too_many_connections", "invalid_http"})
"""Said before a request was read, so in OpenAI's form whatever it would have asked for."""


@dataclass
class Answer:
    """What came back. Times are monotonic seconds."""

    path: str
    began: float
    ended: float = 0.0
    status: int = 0
    """0: not even a head came."""
    request_id: str = ""
    content: Any = None
    """The document, or the list of a stream's documents; text if it is neither."""
    code: str = ""
    """Of the error; empty if all is well so far as the wire goes."""
    form: str = ""
    """What is wrong with the form of the error."""
    hung_up: bool = False

    @property
    def complete(self) -> bool:
        """The whole answer came, and it is no error."""
        return not self.code and not self.hung_up and 200 <= self.status < 300


@dataclass
class Caller:
    """A key's holder. `answers` collects all that it got."""

    port: int
    secret: str
    answers: list[Answer] = field(default_factory=list)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        hang_up_after: int | None = None,
        heard: Callable[[int], object] = int,
    ) -> Answer:
        """One request; a `body` that is not bytes is sent as JSON.

        With `hang_up_after` the connection is closed after so many events of the stream; at 0
        before anything of the answer. `heard` is told the number of each event of a stream.
        """
        answer = Answer(path, time.monotonic())
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            given = {"Authorization": f"Bearer {self.secret}"} if self.secret else {}
            if body is not None:
                given["Content-Type"] = "application/json"
            connection.request(method, path, data, given | dict(headers or {}))
            if hang_up_after == 0:
                answer.hung_up = True
            else:
                _read(answer, connection.getresponse(), hang_up_after, heard)
        except (OSError, http.client.HTTPException):
            answer.code = LOST
        finally:
            connection.close()
        answer.ended = time.monotonic()
        self.answers.append(answer)
        return answer


def _read(
    answer: Answer,
    response: http.client.HTTPResponse,
    hang_up_after: int | None,
    heard: Callable[[int], object],
) -> None:
    answer.status = response.status
    answer.request_id = response.getheader("x-request-id", "")
    kind = response.getheader("content-type", "")
    if kind.startswith("text/event-stream"):
        _read_stream(answer, response, hang_up_after, heard)
        return
    data = response.read()
    is_document = kind.startswith("application/json")
    answer.content = json.loads(data) if is_document else data.decode()
    if answer.status >= 400 and answer.path != "/ready":
        _take_error(answer, answer.content)


def _read_stream(
    answer: Answer,
    response: http.client.HTTPResponse,
    hang_up_after: int | None,
    heard: Callable[[int], object],
) -> None:
    answer.content = []
    for line in response:
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            return
        document = json.loads(data)
        answer.content.append(document)
        heard(len(answer.content))
        kind = document.get("type")
        if kind == "message_stop":
            return
        if kind == "response.failed":
            answer.code = document["response"]["error"]["code"]
            return
        if "error" in document and kind in (None, "error"):
            _take_error(answer, document)
            return
        if hang_up_after is not None and len(answer.content) >= hang_up_after:
            answer.hung_up = True
            return
    answer.code = LOST


def _take_error(answer: Answer, document: Any) -> None:
    """The code of an error document, and what is wrong with it."""
    try:
        error = document["error"]
        if answer.path.startswith(ANTHROPIC) and error.get("code") not in UNREAD:
            answer.code = error["details"]["error_code"]
            wanted = {"type", "message", "details"}
        else:
            answer.code = error["code"]
            wanted = {"message", "type", "param", "code"}
        if set(error) != wanted or not isinstance(error["message"], str):
            answer.form = f"not the form of an error: {document}"
    except (KeyError, TypeError):
        answer.code, answer.form = "malformed", f"no error document: {document!r:.300}"
