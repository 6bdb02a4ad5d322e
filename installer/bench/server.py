"""The server under test, and how it likes to be asked.

Owns its address, its key, which model, and the dialect: servers differ in how an answer's length
is asked for. The first form that is accepted is used for everything and stands in the report.
"""

from __future__ import annotations

import asyncio
import http
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.errors import (
    ApplianceError,
    CapacityError,
    NotFoundError,
    RequestError,
    UnavailableError,
    UsageError,
)
from installer.bench.http import ExchangeError, address_of, exchange
from installer.bench.recorder import Recorder, message_of

Clock = Callable[[], float]
Messages = Sequence[Mapping[str, str]]
Json = dict[str, Any]
_REFUSED = (http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.UNPROCESSABLE_ENTITY)
_COUNT_SECONDS = 120.0


class Model(msgspec.Struct, frozen=True):
    """An entry of /models. What only this appliance says is empty elsewhere."""

    id: str
    kind: str = ""
    version: str = ""
    bundle_digest: str = ""
    context_length: int = 0


class _Models(msgspec.Struct, frozen=True):
    data: list[Model]


class Dialect(msgspec.Struct, frozen=True):
    """How the length of an answer is asked for, and whether usage is asked for."""

    length: str = "max_tokens"
    ignore_eos: bool = True
    usage: bool = True

    def parameters(self, tokens: int) -> Json:
        """The request's parameters for an answer of `tokens`."""
        body: Json = {self.length: tokens}
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.usage:
            body["stream_options"] = {"include_usage": True}
        return body


DIALECTS = (
    Dialect(),
    Dialect(ignore_eos=False),
    Dialect(length="max_completion_tokens", ignore_eos=False),
    Dialect(ignore_eos=False, usage=False),
)
"""In the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Server:
    """An OpenAI-compatible API at `base_url`. Without a `secret` no key is sent."""

    base_url: str
    secret: str | None
    clock: Clock
    timeout_seconds: float
    """Longest silence before a request is given up."""
    tls: ssl.SSLContext | None = None
    """Whom to trust, where `base_url` is one of TLS; None: whom the system trusts."""

    async def model(self, name: str | None) -> Model:
        """The model `name`, or the only one that can chat.

        Raises NotFoundError, UsageError if one has to be chosen, and what the server says.
        """
        status, body = await self._call("GET", "/models")
        if status != http.HTTPStatus.OK:
            if name is not None and status == http.HTTPStatus.NOT_FOUND:
                return Model(name)
            raise refusal(status, body)
        try:
            models = msgspec.json.decode(body, type=_Models).data
        except msgspec.DecodeError:
            raise UnavailableError(
                f"{self.base_url} does not list its models as OpenAI's API does",
                hint="is the path right? It usually ends in /v1",
            ) from None
        return _choose(models, name)

    async def dialect(self, model: str, messages: Messages) -> Dialect:
        """The first dialect in which the server answers. Raises what it says to the first."""
        first: ApplianceError | None = None
        for dialect in DIALECTS:
            request = self._body(model, messages, dialect, 1)
            status, body = await self._call("POST", "/chat/completions", request)
            if status == http.HTTPStatus.OK:
                return dialect
            error = refusal(status, body)
            if status not in _REFUSED:
                raise error
            first = first or error
        assert first is not None
        raise first

    async def stream(
        self, model: str, messages: Messages, dialect: Dialect, tokens: int, recorder: Recorder
    ) -> None:
        """Ask for an answer of `tokens` and note how it comes. What fails is noted as well."""
        try:
            await self._stream(self._body(model, messages, dialect, tokens), recorder)
        except ExchangeError as error:
            recorder.fail(str(error), self.clock())
        except TimeoutError:
            recorder.fail(f"silent for {self.timeout_seconds:g} s", self.clock())

    async def count_by_tokenizer(self, model: str, messages: Messages) -> int | None:
        """The prompt's tokens as POST /tokenize counts them; None if there is no such endpoint.

        It is an extension, in the shape that vLLM gave it, and stands beside /v1 and not below.
        """
        body = {"model": model, "messages": list(messages)}
        status, said = await self._call("POST", "/tokenize", body, below_v1=False)
        try:
            count = json.loads(said)["count"] if status == http.HTTPStatus.OK else None
        except (ValueError, KeyError, TypeError):
            return None
        return count if type(count) is int and count > 0 else None

    async def count_by_usage(self, model: str, messages: Messages, dialect: Dialect) -> int | None:
        """The prompt's tokens as the usage of a one-token answer says; None if it says nothing.

        Raises what the server answers instead.
        """
        recorder = Recorder(self.clock())
        await self.stream(model, messages, dialect, 1, recorder)
        if recorder.sample.error:
            raise UnavailableError(
                f"a prompt could not be counted: {recorder.sample.error}",
                hint="is the server ready? Try again",
            )
        return recorder.sample.prompt_tokens

    def _body(self, model: str, messages: Messages, dialect: Dialect, tokens: int) -> Json:
        return {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "temperature": 0,
            **dialect.parameters(tokens),
        }

    async def _stream(self, body: Json, recorder: Recorder) -> None:
        address = address_of(self.base_url)
        async with asyncio.timeout(self.timeout_seconds) as silence:
            path = f"{address.path}/chat/completions"
            async with exchange(
                address, "POST", path, self._headers(), body, tls=self.tls
            ) as answer:
                if answer.status != http.HTTPStatus.OK:
                    error = refusal(answer.status, await answer.body())
                    recorder.fail(f"status {answer.status}: {error.message}", self.clock())
                    return
                loop = asyncio.get_running_loop()
                async for piece in answer.pieces():
                    recorder.feed(piece, self.clock())
                    if recorder.sample.error:
                        return
                    silence.reschedule(loop.time() + self.timeout_seconds)
        recorder.close(self.clock())

    async def _call(
        self, method: str, path: str, body: Json | None = None, *, below_v1: bool = True
    ) -> tuple[int, bytes]:
        address = address_of(self.base_url)
        path = (address.path if below_v1 else address.path.removesuffix("/v1")) + path
        try:
            async with (
                asyncio.timeout(max(self.timeout_seconds, _COUNT_SECONDS)),
                exchange(address, method, path, self._headers(), body, tls=self.tls) as answer,
            ):
                return answer.status, await answer.body()
        except (ExchangeError, TimeoutError) as error:
            raise UnavailableError(
                f"{self.base_url} does not answer: {str(error) or 'it is silent'}",
                hint="`appliance status` says how this node is; check the address of another",
            ) from error

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if self.secret is not None:
            headers["Authorization"] = f"Bearer {self.secret}"
        return headers


def refusal(status: int, body: bytes) -> ApplianceError:
    """What a server's error answer means here, with its own words."""
    try:
        message = message_of(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered with status {status}"
    if status in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
        return UsageError(message, hint="APPLIANCE_API_KEY must be a key of that server")
    if status == http.HTTPStatus.NOT_FOUND:
        return NotFoundError(message, hint="check --model, and that --base-url ends in /v1")
    if status == http.HTTPStatus.TOO_MANY_REQUESTS:
        return CapacityError(message, hint="try again when the server is less busy")
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return UnavailableError(message, hint="the server's log says more")
    return RequestError(message, hint="the server refused the request as it is")


def _choose(models: Sequence[Model], name: str | None) -> Model:
    names = ", ".join(model.id for model in models) or "none"
    if name is not None:
        for model in models:
            if model.id == name:
                return model
        raise NotFoundError(
            f"the server has no model {name!r}", hint=f"the models it lists: {names}"
        )
    chat = [model for model in models if model.kind in {"", "chat"}]
    if len(chat) == 1:
        return chat[0]
    if not chat:
        raise NotFoundError("the server lists no model that can chat", hint=f"it lists: {names}")
    able = ", ".join(model.id for model in chat)
    raise UsageError("the server has several models", hint=f"choose with --model: {able}")
