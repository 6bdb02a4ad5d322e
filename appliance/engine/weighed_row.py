"""What is known of a row of logits that stays elsewhere, and what can be chosen from that.

Owns the draw from sums of runs, or from the most likely tokens, which is that of `drawing`, from
sums in another order; and log-probabilities from the same. Says so where that does not decide: the
row has to be looked at then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from appliance.engine.choosing import TokenLogprob
from appliance.engine.drawing import (
    RUN,
    Ids,
    Scores,
    Sums,
    filtered,
    find_run,
    inside_run,
    place,
    rooms,
    weigh,
)
from appliance.engine.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The most likely tokens of a row, best first; `all_of_them`: there are no others."""

    ids: Ids
    scores: Scores
    all_of_them: bool


@dataclass(frozen=True, slots=True)
class Weighed:
    """What is known of one row of logits.

    Attributes:
        highest: its largest logit.
        sums: the mass of each run at one temperature, as `drawing.run_sums` has it.
        likeliest: None where nobody needs them.
        read: fetches so many logits from a token on.
    """

    highest: np.float32
    sums: Sums
    likeliest: Likeliest | None
    read: Callable[[int, int], Scores]

    def draw(self, params: SamplingParams, share: float, vocab: int) -> int | None:
        """As `drawing.draw`; None if the row has to be looked at for it."""
        if self.likeliest is not None:
            return self._among_likeliest(self.likeliest, params, share)
        if not self.sums.sum() > 0:
            return None  # numbers that mean nothing: whoever looks at the row shall say so
        run, rest = find_run(self.sums, share)
        first = run * RUN
        scores = self.read(first, min(RUN, vocab - first))
        weights = weigh(scores, self.highest, params.temperature, rooms.row("run", len(scores)))
        return first + inside_run(weights, rest)

    def _among_likeliest(
        self, likeliest: Likeliest, params: SamplingParams, share: float
    ) -> int | None:
        ids, scores, mass = likeliest.ids, likeliest.scores, float(self.sums.sum())
        complete = likeliest.all_of_them
        if not complete and scores[-1] == -np.inf:
            # What a mask forbids has no weight, wherever it stands: those that may be are all here.
            possible = scores > -np.inf
            ids, scores, complete = ids[possible], scores[possible], True
        if 0 < params.top_k < len(scores):
            kept = scores >= scores[params.top_k - 1]
            # Where the last one is kept, others that are as likely may follow.
            complete = complete or not kept[-1]
            ids, scores = ids[kept], scores[kept]
            mass = 0.0
        elif params.top_k and not complete:
            return None
        if not len(scores):
            return None
        order = np.argsort(ids)
        ids = ids[order]
        weights = weigh(
            scores[order], self.highest, params.temperature, rooms.row("likeliest", len(ids))
        )
        if not (complete or _decides(weights, params, mass)):
            return None
        left, weights = filtered(ids, weights, params, mass or None)
        assert left is not None
        return int(left[place(weights, share)])


@dataclass(frozen=True, slots=True)
class ModelsOwn:
    """What log-probabilities need of a row as the model gave it: `weighed` at temperature 1.

    Attributes:
        row: all of it, where `weighed` does not say which tokens are the most likely, or its
            logits are changed since.
    """

    weighed: Weighed
    row: Scores | None

    def logprob(self, token_id: int, top: int) -> TokenLogprob:
        """As `choosing.logprob`, within the rounding of sums in another order."""
        weighed, likeliest = self.weighed, self.weighed.likeliest
        assert likeliest is not None
        total = np.log(weighed.sums.sum()) + float(weighed.highest)
        own = float(weighed.read(token_id, 1)[0])
        order = np.lexsort((likeliest.ids, -likeliest.scores))[:top]
        pairs = [(int(likeliest.ids[i]), float(likeliest.scores[i] - total)) for i in order]
        return TokenLogprob(token_id, float(own - total), tuple(pairs))


@dataclass(frozen=True, slots=True)
class WeighedRow:
    """All that was asked of one row.

    Attributes:
        best: its likeliest token, if it was changed.
        weighed: None where nothing is drawn from it.
        own: None where nobody asks for log-probabilities.
        changed: its row is changed in its place: what it has is what may be chosen.
    """

    best: int | None
    weighed: Weighed | None
    own: ModelsOwn | None
    changed: bool


def _decides(weights: Scores, params: SamplingParams, mass: float) -> bool:
    """Whether the filters leave none but these, which are the most likely of `mass`."""
    if params.top_p < 1 and mass:
        return float(weights.sum(dtype=np.float64)) >= params.top_p * mass
    return params.min_p > 0 and float(weights.min()) < params.min_p * float(weights.max())
