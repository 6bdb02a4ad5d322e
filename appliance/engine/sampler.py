"""Chooses the next token of one sequence from its logits.

Owns the sequence's random generator and what it has seen. The choice depends on the sequence
alone, never on what else is in the batch: each sequence has its own generator, and takes one
number from it for each sampled token.

Order, as in the transformers library: bias and penalties on the logits; temperature; top_k;
top_p over what is left, made to sum to 1; min_p relative to the most likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.engine.sampling import SamplingParams

Scores = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
_TOP_P_FIRST_LOOK = 512
"""So many of the most likely tokens usually hold top_p of the mass; else all are sorted."""


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

    def sample(self, logits: Scores) -> Sampled:
        """Choose from `logits` [vocab]; the array is not changed."""
        scores = self._edited(logits) if self._edits_logits else logits
        token_id = int(scores.argmax()) if self._params.greedy else self._draw(scores)
        self._generated += 1
        if self._edits_logits:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
        top = self._params.logprobs
        return Sampled(token_id, None if top is None else logprob(logits, token_id, top))

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
        boundaries = np.cumsum(weights, dtype=np.float64)
        place = np.searchsorted(boundaries, self._random.random() * boundaries[-1], side="right")
        return int(ids[min(int(place), len(ids) - 1)])


def candidates(scores: Scores, params: SamplingParams) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Token ids in ascending order that may be drawn, and their weights (not normalised)."""
    scaled = scores.astype(np.float64) / params.temperature
    ids: Ids = np.arange(len(scaled))
    if 0 < params.top_k < len(scaled):
        threshold = np.partition(scaled, -params.top_k)[-params.top_k]
        ids = np.flatnonzero(scaled >= threshold)
    weights = np.exp(scaled[ids] - scaled.max())
    if params.top_p < 1:
        kept = _nucleus(weights, params.top_p)
        ids, weights = ids[kept], weights[kept]
    if params.min_p > 0:
        kept = weights >= params.min_p * weights.max()
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def logprob(logits: Scores, token_id: int, top: int) -> TokenLogprob:
    """Log-probability of `token_id`, and of the `top` most likely tokens, under `logits`."""
    exact = logits.astype(np.float64)
    highest = exact.max()
    total = highest + np.log(np.exp(exact - highest).sum())
    best: list[int] = []
    if top:
        likely = np.argpartition(exact, -top)[-top:] if top < len(exact) else np.arange(len(exact))
        best = sorted((int(i) for i in likely), key=lambda i: (-exact[i], i))
    pairs = tuple((i, float(exact[i] - total)) for i in best)
    return TokenLogprob(token_id, float(exact[token_id] - total), pairs)


def _nucleus(weights: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.bool_]:
    """Mask of the smallest set of the most likely whose mass reaches `top_p` (Holtzman 2020)."""
    wanted = top_p * weights.sum()
    look = min(_TOP_P_FIRST_LOOK, len(weights))
    likely = np.argpartition(weights, -look)[-look:]
    if weights[likely].sum() < wanted:
        likely = np.arange(len(weights))
    order = likely[np.argsort(-weights[likely], kind="stable")]
    before = np.cumsum(weights[order]) - weights[order]
    mask = np.zeros(len(weights), np.bool_)
    mask[order[before < wanted]] = True
    return mask
