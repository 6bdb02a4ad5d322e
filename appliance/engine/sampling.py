"""What a caller may ask of sampling: one frozen set of parameters, checked in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.errors import RequestError

MAX_LOGPROBS = 20
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_SEQUENCES = 128


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Defaults are neutral: nothing filtered, nothing penalised.

    Attributes:
        max_tokens: tokens to generate at most; None: up to the context length.
        min_tokens: until so many are generated, end tokens and stop strings do not count.
        temperature: 0 is greedy.
        top_k: 0 is off.
        end_ids: tokens that end the sequence.
        logprobs: None: none; k: the sampled token's and those of the k most likely.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    end_ids: frozenset[int] = frozenset()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5

    def check(self, vocab_size: int) -> None:
        """Raise RequestError naming the first parameter that is out of range."""
        self._check_ranges()
        self._check_stops()
        for token_id in self.end_ids:
            _require(token_id < vocab_size, "stop_token_ids", f"below {vocab_size}")
        for token_id, bias in self.logit_bias.items():
            _require(token_id < vocab_size, "logit_bias", f"of token ids below {vocab_size}")
            _require(-100 <= bias <= 100, "logit_bias", "between -100 and 100")
        if self.logprobs is not None:
            _require(self.logprobs <= MAX_LOGPROBS, "logprobs", f"at most {MAX_LOGPROBS}")

    def _check_ranges(self) -> None:
        bounds: tuple[tuple[str, float, float, float], ...] = (
            ("temperature", self.temperature, 0, 100),
            ("top_k", self.top_k, 0, math.inf),
            ("min_p", self.min_p, 0, 1),
            ("presence_penalty", self.presence_penalty, -2, 2),
            ("frequency_penalty", self.frequency_penalty, -2, 2),
        )
        for name, value, low, high in bounds:
            _require(low <= value <= high, name, f"between {low} and {high}")
        _require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        _require(0 < self.repetition_penalty <= 10, "repetition_penalty", "above 0 and at most 10")
        if self.max_tokens is not None:
            _require(self.max_tokens > 0, "max_tokens", "at least 1")
            _require(self.min_tokens <= self.max_tokens, "min_tokens", "at most max_tokens")

    def _check_stops(self) -> None:
        _require(len(self.stop) <= MAX_STOPS, "stop", f"at most {MAX_STOPS} strings")
        for text in self.stop:
            _require(
                0 < len(text) <= MAX_STOP_CHARS, "stop", f"of 1 to {MAX_STOP_CHARS} characters"
            )


def _require(condition: bool, param: str, wanted: str) -> None:
    # Written as a positive condition so that NaN, which fails every comparison, is refused.
    if not condition:
        raise RequestError(f"{param} must be {wanted}", param=param)
