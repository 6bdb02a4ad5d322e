"""/v1/completions on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.sampling import Sampling, TokenId
from appliance.shim.wire.usage import Usage

MAX_PROMPTS = 128
DEFAULT_MAX_TOKENS = 16


class CompletionRequest(Sampling, frozen=True):
    """A request as parameters.COMPLETIONS describes it."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: object = None
    echo: bool | None = None
    suffix: str | None = None
    """What stands behind the answer; an empty one is none."""

    def to_engine(self, request_id: str, cache_namespace: str) -> list[pb.GenerateRequest]:
        """One engine request for each prompt. Raises RequestError."""
        self.check()
        if self.echo and self.logprobs is not None:
            raise RequestError(
                "`echo` is not supported here together with `logprobs`",
                param="echo",
                code="unsupported_parameter",
            )
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        sampling = self.params(max_tokens=limit, logprobs=self.logprobs)
        requests = []
        for number, prompt in enumerate(inputs(self.prompt, "prompt", MAX_PROMPTS)):
            request = pb.GenerateRequest(
                request_id=f"{request_id}-{number}",
                model=self.model,
                sampling=sampling,
                n=self.n or 1,
                cache_namespace=cache_namespace,
            )
            if self.suffix:
                request.fill_in.CopyFrom(self._fill_in(prompt))
            elif isinstance(prompt, str):
                request.text = prompt
            else:
                request.tokens.ids.extend(prompt)
            requests.append(request)
        return requests

    def _fill_in(self, prompt: str | list[int]) -> pb.FillIn:
        if not isinstance(prompt, str):
            raise RequestError(
                "`suffix` needs a prompt of text: the model's control tokens go around both",
                param="suffix",
                code="unsupported_parameter",
            )
        return pb.FillIn(prefix=prompt, suffix=self.suffix or "")


def inputs(
    given: str | list[str | int | list[int]], param: str, most: int
) -> Sequence[str | list[int]]:
    """The inputs that `given` stands for: a text, token ids, or a list of one kind of either.

    Raises RequestError naming `param` if kinds are mixed, or there are more than `most`.
    """
    if isinstance(given, str):
        return [given]
    texts = [item for item in given if isinstance(item, str)]
    lists = [item for item in given if isinstance(item, list) and item]
    tokens = [item for item in given if isinstance(item, int)]
    if len(tokens) == len(given):
        return [tokens]
    if len(given) > most:
        raise RequestError(
            f"`{param}` has {len(given)} entries, at most {most} are taken",
            param=param,
            code="invalid_value",
        )
    if len(texts) == len(given):
        return texts
    if len(lists) == len(given):
        return lists
    raise RequestError(
        f"`{param}` must be a string, token ids, or a list of one kind of either, none empty",
        param=param,
        code="invalid_value",
    )


class CompletionLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct):
    """The answer, and with a choice at a time also the chunk of a stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"
