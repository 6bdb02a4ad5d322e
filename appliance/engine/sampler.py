"""Chooses the next token of one sequence.

Owns the sequence's random generator and what it has seen. The choice depends on the sequence
alone, never on what else is in the batch: each sequence has its own generator, and takes one
number from it for each sampled token. How a row of logits answers: choosing.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from appliance.engine.choosing import IMPOSSIBLE, Choice, Edits, HostRow, Row, TokenLogprob
from appliance.engine.drawing import Ids, Scores
from appliance.engine.grammar.constraint import Mask
from appliance.engine.sampling import SamplingParams


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
        self._ends: Ids = np.array(sorted(params.end_ids), np.int64)

    def choice(self, allowed: Mask | None = None) -> Choice:
        """How the next token is to be chosen, if it is one of `allowed` [vocab]; None allows all.

        Where `min_tokens` forbids all that is allowed, what changes logits gives way: there is
        nothing else to say.
        """
        if not self._edits_logits or (allowed is not None and self._leaves_nothing(allowed)):
            return Choice(self._params, None, allowed)
        return Choice(self._params, self._edits(), allowed)

    def choose(self, row: Row) -> Sampled:
        """Choose from a row that its `choice` sees."""
        if self._params.greedy:
            return self._booked(row.best(), row)
        return self._booked(row.draw(self._random.random()), row)

    def take_forced(self, token_id: int, row: Row | None) -> Sampled:
        """Book the only token that may be next, as `choose` does where no other is allowed.

        row: which only log-probabilities need.
        """
        if not self._params.greedy:
            self._random.random()
        return self._booked(token_id, row)

    def sample(self, logits: Scores, allowed: Mask | None = None) -> Sampled:
        """Choose from `logits` [vocab]; the array is not changed."""
        return self.choose(HostRow(logits, self.choice(allowed)))

    def _booked(self, token_id: int, row: Row | None) -> Sampled:
        self._generated += 1
        if self._edits_logits:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
        top = self._params.logprobs
        if top is None:
            return Sampled(token_id)
        assert row is not None, "log-probabilities are the model's"
        return Sampled(token_id, row.logprob(token_id, top))

    @property
    def _forbids_ends(self) -> bool:
        return self._generated < self._params.min_tokens and bool(len(self._ends))

    def _leaves_nothing(self, allowed: Mask) -> bool:
        if not self._forbids_ends:
            return False
        return bool(np.count_nonzero(allowed) == np.count_nonzero(allowed[self._ends]))

    def _edits(self) -> Edits | None:
        """What is to become of which logits now; None if nothing is."""
        params = self._params
        counted = np.fromiter(self._counts, np.int64)
        scaled = params.repetition_penalty != 1.0
        penalised = bool(params.presence_penalty or params.frequency_penalty)
        biased = np.fromiter(params.logit_bias, np.int64)
        parts = [biased]
        if scaled:
            parts.append(self._seen_prompt)
        if scaled or penalised:
            parts.append(counted)
        if self._forbids_ends:
            parts.append(self._ends)
        ids: Ids = np.unique(np.concatenate(parts))
        if not len(ids):
            return None
        factors, shifts = np.ones(len(ids), np.float32), np.zeros(len(ids), np.float32)
        if scaled:
            seen = np.searchsorted(ids, np.concatenate([self._seen_prompt, counted]))
            factors[seen] = params.repetition_penalty
        if penalised:
            times = np.fromiter(self._counts.values(), np.float32)
            penalty = params.presence_penalty + params.frequency_penalty * times
            shifts[np.searchsorted(ids, counted)] -= penalty
        shifts[np.searchsorted(ids, biased)] += np.fromiter(params.logit_bias.values(), np.float32)
        if self._forbids_ends:
            shifts[np.searchsorted(ids, self._ends)] = IMPOSSIBLE
        return Edits(ids, factors, shifts)
