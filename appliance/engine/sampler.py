"""Chooses the next token of one sequence from its logits.

Owns the sequence's random generator and what it has seen. The choice depends on the sequence
alone, never on what else is in the batch: each sequence has its own generator, and takes one
number from it for each sampled token.

Order, as in the transformers library: bias and penalties on the logits; then, if the sequence
has a grammar, only what it admits; temperature; top_k; top_p over what is left, made to sum to
1; min_p relative to the most likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.engine.grammar.constraint import Mask
from appliance.engine.sampling import SamplingParams

Scores = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
_IMPOSSIBLE = np.float32(-np.inf)
_NUCLEUS_LOOKS = (256, 4096)
"""So many of the most likely tokens usually hold top_p of the mass; sorting all is slow."""
_RUN = 512
_RUNS_EACH = 4


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
        token_id = int(scores.argmax()) if self._params.greedy else self._draw(scores)
        return self._booked(token_id, logits)

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
        params, scores = self._params, logits.copy()
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

    def _draw(self, scores: Scores) -> int:
        """Inverse of the cumulative distribution, over candidates in order of their ids.

        Not in order of probability: two nearly equal candidates may change places when another
        batch rounds differently, and every boundary between them would move.
        """
        ids, weights = candidates(scores, self._params)
        return int(ids[_place(weights, self._random.random())])


def _masked(scores: Scores, logits: Scores, allowed: Mask) -> Scores:
    """`scores` of what is allowed, the rest impossible.

    Where `min_tokens` forbids all that is allowed, it gives way: there is nothing else to say.
    """
    masked = np.where(allowed, scores, _IMPOSSIBLE)
    if masked.max() == _IMPOSSIBLE:
        masked = np.where(allowed, logits, _IMPOSSIBLE)
    return masked


def candidates(scores: Scores, params: SamplingParams) -> tuple[Ids, Scores]:
    """Token ids in ascending order that may be drawn, and their weights (not normalised)."""
    highest = scores.max()
    if 0 < params.top_k < len(scores):
        ids: Ids = np.flatnonzero(scores >= _kth_largest(scores, params.top_k))
        scores = scores[ids]
    else:
        ids = np.arange(len(scores))
    weights = np.exp((scores - highest) / np.float32(params.temperature))
    if params.top_p < 1:
        kept = _nucleus(weights, params.top_p)
        ids, weights = ids[kept], weights[kept]
    if params.min_p > 0:
        kept = weights >= params.min_p * weights.max()
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def logprob(logits: Scores, token_id: int, top: int) -> TokenLogprob:
    """Log-probability of `token_id`, and of the `top` most likely tokens, under `logits`."""
    below = logits - logits.max()
    total = np.log(np.exp(below).sum(dtype=np.float64))
    best: list[int] = []
    if top:
        likely = np.flatnonzero(below >= _kth_largest(below, min(top, len(below))))
        best = sorted((int(i) for i in likely), key=lambda i: (-below[i], i))[:top]
    pairs = tuple((i, float(below[i] - total)) for i in best)
    return TokenLogprob(token_id, float(below[token_id] - total), pairs)


def _place(weights: Scores, share: float) -> int:
    """Where `share` of the mass lies to the left: 0 of it at the first weight, 1 at the last.

    Runs are summed first, and only one is gone through number by number.
    """
    whole = len(weights) // _RUN * _RUN
    runs = weights[:whole].reshape(-1, _RUN).sum(1, dtype=np.float64)
    if whole < len(weights):
        runs = np.append(runs, weights[whole:].sum(dtype=np.float64))
    boundaries = np.cumsum(runs)
    wanted = share * boundaries[-1]
    run = min(int(np.searchsorted(boundaries, wanted, side="right")), len(runs) - 1)
    inside = np.cumsum(weights[run * _RUN : (run + 1) * _RUN], dtype=np.float64)
    place = np.searchsorted(inside, wanted - (boundaries[run] - runs[run]), side="right")
    return run * _RUN + min(int(place), len(inside) - 1)


def _nucleus(weights: Scores, top_p: float) -> npt.NDArray[np.bool_]:
    """Mask of the smallest set of the most likely whose mass reaches `top_p` (Holtzman 2020)."""
    wanted = top_p * weights.sum(dtype=np.float64)
    order = _likely_order(weights, wanted)
    mass = weights[order].astype(np.float64)
    mask = np.zeros(len(weights), np.bool_)
    mask[order[np.cumsum(mass) - mass < wanted]] = True
    return mask


def _likely_order(weights: Scores, wanted: float) -> npt.NDArray[np.intp]:
    """The most likely first, at least as many as hold `wanted`; seldom is it all of them."""
    for look in _NUCLEUS_LOOKS:
        if look < len(weights):
            likely = np.flatnonzero(weights >= _kth_largest(weights, look))
            if weights[likely].sum(dtype=np.float64) >= wanted:
                return likely[np.argsort(-weights[likely], kind="stable")]
    return np.argsort(-weights, kind="stable")


def _kth_largest(values: Scores, k: int) -> np.float32:
    """The k-th largest of `values`.

    A few times as many runs of values as k have k maxima that nothing below them can pass, so
    only what reaches those is partitioned: at 152,000 values 30 times faster than all of them.
    """
    width = len(values) // (_RUNS_EACH * k)
    if width > 1:
        runs = values[: len(values) // width * width].reshape(-1, width).max(1)
        values = values[values >= np.partition(runs, -k)[-k]]
    found: np.float32 = np.partition(values, -k)[-k]
    return found
