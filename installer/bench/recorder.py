"""One request, from the moment it was due until its stream ended.

Owns what is noted of it and when. It is fed with bytes and the time they came, so that every
figure can be worked out by hand from known times. Refuses to count tokens.
"""

from __future__ import annotations

from typing import Any

import msgspec

from installer.bench.event_stream import EventReader

_DONE = b"[DONE]"


class Sample(msgspec.Struct, kw_only=True):
    """What one request showed. Times in seconds; `begin` is relative to the level's begin."""

    begin: float = 0.0
    ttft: float | None = None
    """From `begin` to the first piece of the answer; None if there was none."""
    seconds: float = 0.0
    """From `begin` to the end of the stream."""
    last: float | None = None
    """From `begin` to the last piece."""
    pieces: int = 0
    """Events that carried some of the answer; a piece may hold several tokens."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    error: str = ""


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    system_fingerprint: str | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Chunk)


class Recorder:
    """Notes one streamed answer. `begin`: when its request was due, on the caller's clock."""

    def __init__(self, begin: float) -> None:
        self.begin = begin
        self.sample = Sample()
        self.gaps: list[float] = []
        """Seconds between pieces that follow each other."""
        self.fingerprint = ""
        self.finished = False
        """The server has said that the answer is complete."""
        self._events = EventReader()
        self._before: float | None = None

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes of the stream that came at `now`."""
        for event in self._events.feed(data):
            if event == _DONE:
                self.finished = True
            else:
                self._take(event, now)

    def close(self, now: float) -> None:
        """The stream has ended, by itself: it must have been complete."""
        if not self.finished:
            self.fail("the stream broke off", now)
        self._end(now)

    def fail(self, reason: str, now: float) -> None:
        """The request failed with `reason`; the first reason counts."""
        self.sample.error = self.sample.error or reason
        self._end(now)

    def _end(self, now: float) -> None:
        self.sample.seconds = now - self.begin

    def _take(self, event: bytes, now: float) -> None:
        try:
            chunk = _DECODER.decode(event)
        except msgspec.DecodeError:
            self.fail("an event is not a chunk of a chat completion", now)
            return
        if chunk.error is not None:
            self.fail(f"error in the stream: {message_of(chunk.error)}", now)
        if chunk.usage is not None:
            self._take_usage(chunk.usage)
        self.fingerprint = chunk.system_fingerprint or self.fingerprint
        for choice in chunk.choices or ():
            self.finished = self.finished or bool(choice.finish_reason)
            if choice.delta is not None and _says_something(choice.delta):
                self._piece(now)

    def _piece(self, now: float) -> None:
        sample = self.sample
        sample.pieces += 1
        sample.last = now - self.begin
        if self._before is None:
            sample.ttft = sample.last
        else:
            self.gaps.append(now - self._before)
        self._before = now

    def _take_usage(self, usage: _Usage) -> None:
        sample = self.sample
        sample.prompt_tokens = usage.prompt_tokens
        sample.completion_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            sample.cached_tokens = usage.prompt_tokens_details.cached_tokens


def message_of(error: object) -> str:
    """The message in what servers put under `error`: an object, or only a text."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("code") or error
    return " ".join(str(error).split())[:200]


def _says_something(delta: _Delta) -> bool:
    return bool(
        delta.content
        or delta.reasoning_content
        or delta.reasoning
        or delta.refusal
        or delta.tool_calls
    )
