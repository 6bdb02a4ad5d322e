"""The sampling parameters that chat and completions share, and their bounds."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb

MAX_STOPS = 16
MAX_BIASES = 1024
"""More of them took the endpoint and the engine 0.3 s to pass on, in which others waited."""
Count = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Share = Annotated[float, Meta(ge=0, le=1)]
TopP = Annotated[float, Meta(gt=0, le=1)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
_SEEDS = 1 << 64


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fields that mean the same in every generating API; None leaves it to the bundle."""

    model: str
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    top_k: Count | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=MAX_BIASES)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOPS)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self) -> None:
        """Raise RequestError if fields contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "`stream_options` needs `stream`", param="stream_options", code="invalid_value"
            )
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            raise RequestError(
                "`stream_options.include_obfuscation` is not supported here",
                param="stream_options.include_obfuscation",
                code="unsupported_parameter",
            )

    def params(self, *, max_tokens: int | None, logprobs: int | None) -> pb.SamplingParams:
        """These fields in the engine's words."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return pb.SamplingParams(
            max_tokens=max_tokens or 0,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            # Negative seeds are seeds too: two's complement.
            seed=None if self.seed is None else self.seed % _SEEDS,
            stop=stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=bool(self.ignore_eos),
            logit_bias=self.logit_bias,
            logprobs=logprobs,
            min_tokens=self.min_tokens or 0,
        )
