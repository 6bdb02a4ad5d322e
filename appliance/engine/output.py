"""Reads one sequence's tokens back: text, reasoning, tool calls, stop strings, counts.

    token -> detokenizer -> stop strings -> reasoning tags -> tool calls -> Delta

Owns these stages for one sequence. Every token makes a Delta, even one whose text is held back:
the counts that a reader adds up are then exact at any moment, also if it goes away.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from appliance.bundle.specs import Prompting
from appliance.engine.choosing import TokenLogprob
from appliance.engine.sampler import Sampled
from appliance.engine.sampling import SamplingParams
from appliance.engine.stops import StopMatcher
from appliance.engine.tokenizer import Tokenizer
from appliance.prompting import Piece, ReasoningSplitter, Tool, ToolCallPiece
from appliance.prompting.call_parser import CallParser
from appliance.prompting.formats import FORMATS, channels
from appliance.prompting.messages import Channels


class FinishReason(enum.Enum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to a sequence. `tokens` is 0 only for text that was held back."""

    index: int
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallPiece, ...] = ()
    tokens: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a sequence, with exact counts of what was computed for it.

    `cached_tokens` of the `prompt_tokens` came from the prefix cache. The prediction's tokens that
    were computed as drafts were accepted, and are among the generated, or rejected, and are not.
    """

    index: int
    reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    reasoning_tokens: int
    stop: str = ""
    cached_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class OutputReader:
    """One sequence's reader.

    Args:
        prompting: how the model marks reasoning and calls; None reads plain text.
        tools: whether the request offered tools, so that calls are looked for.
        functions: the tools, by whose schemas some formats' arguments get their types.
        continued: the prompt ends with the beginning of the answer.
        calls_first: calls are looked for only in an answer that begins with one; other answers
            may quote the tags.
        reasoning: whether the model may reason; if not, all of it is the answer.
        reasoning_opened: whether the prompt already ends with the opening reasoning tag.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        index: int,
        *,
        prompting: Prompting | None = None,
        tools: bool = False,
        functions: Iterable[Tool] = (),
        continued: bool = False,
        calls_first: bool = False,
        reasoning: bool = True,
        reasoning_opened: bool = False,
    ) -> None:
        self._params = params
        self._index = index
        self._detokenizer = tokenizer.detokenizer()
        self._stops = StopMatcher(params.stop)
        self._splitter: ReasoningSplitter | None = None
        self._calls: CallParser | None = None
        self._first_of_calls = ""
        """What an answer begins with that is made of calls; empty when that is settled."""
        self._channels: Channels | None = None
        if prompting is not None:
            self._channels = channels(
                *(prompting.tool_format, _new_id(0), functions), tools=tools, continued=continued
            )
        if self._channels is not None:
            self._calls = self._channels
        elif prompting is not None:
            if prompting.reasoning_start and reasoning:
                self._splitter = ReasoningSplitter(
                    prompting.reasoning_start, prompting.reasoning_end, opened=reasoning_opened
                )
            if tools and prompting.tool_format:
                written = FORMATS[prompting.tool_format]
                self._calls = written.parser(_new_id(written.id_length), functions)
                self._first_of_calls = written.first if calls_first else ""
        self.tokens = 0
        self.reasoning_tokens = 0

    @property
    def stop(self) -> str:
        """The stop string that was found, or ""."""
        return self._stops.matched

    @property
    def called(self) -> bool:
        """Whether the model called a tool."""
        return self._calls is not None and self._calls.calls > 0

    def read(self, sampled: Sampled) -> Delta:
        """One token's delta; an end token has no text."""
        self.tokens += 1
        ends = sampled.token_id in self._params.end_ids
        before = self._in_reasoning
        text = "" if ends else self._detokenizer.step(sampled.token_id)
        pieces = self._read_text(self._until_stop(text))
        self.reasoning_tokens += before or self._in_reasoning
        return self._delta(
            pieces,
            tokens=1,
            token_ids=(sampled.token_id,),
            logprobs=() if sampled.logprob is None else (sampled.logprob,),
        )

    def drop(self, sampled: Sampled) -> Delta:
        """A token that was computed and is not shown: it is counted, no more."""
        self.tokens += 1
        return self._delta([], tokens=1, token_ids=(sampled.token_id,))

    def finish(self) -> Delta | None:
        """The text that was held back, if any."""
        pieces: list[Piece] = []
        if not self.stop:
            text = self._until_stop(self._detokenizer.finish())
            pieces += self._read_text(text + ("" if self.stop else self._stops.finish()))
        if self._splitter is not None:
            pieces += self._read_calls(self._splitter.finish())
        if self._calls is not None:
            pieces += self._calls.finish()
        return self._delta(pieces) if pieces else None

    @property
    def _in_reasoning(self) -> bool:
        reader = self._channels or self._splitter
        return reader is not None and reader.reasoning

    def _until_stop(self, text: str) -> str:
        if self.tokens <= self._params.min_tokens:
            return self._stops.finish() + text
        return self._stops.feed(text)

    def _read_text(self, text: str) -> list[Piece]:
        if not text:
            return []
        pieces = [Piece(text=text)] if self._splitter is None else self._splitter.feed(text)
        return self._read_calls(pieces)

    def _read_calls(self, pieces: Iterable[Piece]) -> list[Piece]:
        pieces = list(pieces)
        if self._first_of_calls and (answer := "".join(p.text for p in pieces).lstrip()):
            if answer[0] not in self._first_of_calls:
                self._calls = None
            self._first_of_calls = ""
        if self._calls is None:
            return pieces
        return [
            found
            for piece in pieces
            for found in (self._calls.feed(piece.text) if piece.text else [piece])
        ]

    def _delta(
        self,
        pieces: list[Piece],
        *,
        tokens: int = 0,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> Delta:
        return Delta(
            self._index,
            "".join(piece.text for piece in pieces),
            "".join(piece.reasoning for piece in pieces),
            tuple(piece.tool_call for piece in pieces if piece.tool_call is not None),
            tokens,
            token_ids,
            logprobs,
        )


def _new_id(length: int) -> Callable[[], str]:
    """Makes the ids of calls; of so many characters if a template refuses others."""
    if length:
        return lambda: secrets.token_hex(length)[:length]
    return lambda: f"call_{secrets.token_hex(12)}"
