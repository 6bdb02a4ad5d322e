"""Chooses the next token of one sequence from its logits.

Owns the sequence's random generator and what it has seen. The choice depends on the sequence
alone, never on what else is in the batch: each sequence has its own generator, and takes one
number from it for each sampled token.

Order, as in the transformers library: bias and penalties on the logits; then, if the sequence
has a grammar, only what it admits; then the filters of `drawing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from appliance.engine.drawing import Ids, Scores, draw, kth_largest, rooms
from appliance.engine.grammar.constraint import Mask
from appliance.engine.sampling import SamplingParams

_IMPOSSIBLE = np.float32(-np.inf)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability under the model itself."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens, best first."""


@dataclass(frozen=True, slots=True)
class Sampled:
    token_id: int
    logprob: TokenLogprob | None = None


class Sampler:
    """One sequence's sampler.

    Args:
        params: checked parameters.
        prompt: the prompt's token ids.
        index: number of the sequence within its request; each draws numbers of its own.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], *, index: int = 0) -> None:
        self._params = params
        self._prompt = prompt
        seed = np.random.SeedSequence(entropy=params.seed, spawn_key=(index,))
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._counts: dict[int, int] = {}
        self._generated = 0
        self._edits_logits = bool(
            params.logit_bias
            or params.min_tokens
            or params.presence_penalty
            or params.frequency_penalty
            or params.repetition_penalty != 1.0
        )
        self._seen_prompt: Ids = np.unique(np.asarray(prompt, np.int64))

    @property
    def takes_likeliest(self) -> bool:
        """Whether the choice is the likeliest token under the model itself, and nothing else."""
        return self._params.greedy and not self._edits_logits and self._params.logprobs is None

    @property
    def only_draws(self) -> bool:
        """Whether the choice is a draw from the logits as they are, which nobody else asks for."""
        params = self._params
        return not (params.greedy or self._edits_logits or params.logprobs is not None)

    def draw(self, choose: Callable[[float], int]) -> Sampled:
        """Book what `choose` draws with the sequence's next number, as `sample` would."""
        assert self.only_draws
        self._generated += 1
        return Sampled(choose(self._random.random()))

    def take(self, token_id: int) -> Sampled:
        """Book the likeliest token, which the graph has found."""
        assert self.takes_likeliest
        self._generated += 1
        return Sampled(token_id)

    def take_forced(self, token_id: int, logits: Scores | None) -> Sampled:
        """Book the only token that may be next, as `sample` does where no other is allowed.

        logits: [vocab], which only log-probabilities need.
        """
        if not self._params.greedy:
            self._random.random()
        return self._booked(token_id, logits)

    def sample(self, logits: Scores, allowed: Mask | None = None) -> Sampled:
        """Choose from `logits` [vocab]; the array is not changed.

        allowed: [vocab], true for at least one token; None allows all.
        """
        scores = self._edited(logits) if self._edits_logits else logits
        if allowed is not None:
            scores = _masked(scores, logits, allowed)
        if self._params.greedy:
            return self._booked(int(scores.argmax()), logits)
        return self._booked(draw(scores, self._params, self._random.random()), logits)

    def _booked(self, token_id: int, logits: Scores | None) -> Sampled:
        self._generated += 1
        if self._edits_logits:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
        top = self._params.logprobs
        if top is None:
            return Sampled(token_id)
        assert logits is not None, "log-probabilities are the model's"
        return Sampled(token_id, logprob(logits, token_id, top))

    def _edited(self, logits: Scores) -> Scores:
        params, scores = self._params, rooms.row("edited", len(logits))
        scores[:] = logits
        if params.repetition_penalty != 1.0:
            seen = np.union1d(self._seen_prompt, np.fromiter(self._counts, np.int64))
            values = scores[seen]
            factor = np.float32(params.repetition_penalty)
            scores[seen] = np.where(values > 0, values / factor, values * factor)
        if self._counts and (params.presence_penalty or params.frequency_penalty):
            ids = np.fromiter(self._counts, np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            scores[ids] -= params.presence_penalty + params.frequency_penalty * counts
        for token_id, bias in params.logit_bias.items():
            scores[token_id] += np.float32(bias)
        if self._generated < params.min_tokens and params.end_ids:
            scores[list(params.end_ids)] = -np.inf
        return scores


def _masked(scores: Scores, logits: Scores, allowed: Mask) -> Scores:
    """`scores` of what is allowed, the rest impossible.

    Where `min_tokens` forbids all that is allowed, it gives way: there is nothing else to say.
    """
    masked = rooms.row("masked", len(scores))
    masked[:] = _IMPOSSIBLE
    np.copyto(masked, scores, where=allowed)
    if masked.max() == _IMPOSSIBLE:
        np.copyto(masked, logits, where=allowed)
    return masked


def logprob(logits: Scores, token_id: int, top: int) -> TokenLogprob:
    """Log-probability of `token_id`, and of the `top` most likely tokens, under `logits`."""
    below = logits - logits.max()
    total = np.log(np.exp(below).sum(dtype=np.float64))
    best: list[int] = []
    if top:
        likely = np.flatnonzero(below >= kth_largest(below, min(top, len(below))))
        best = sorted((int(i) for i in likely), key=lambda i: (-below[i], i))[:top]
    pairs = tuple((i, float(below[i] - total)) for i in best)
    return TokenLogprob(token_id, float(below[token_id] - total), pairs)
