"""One row of logits, and how a token is chosen from it.

Owns what a request changes of the logits before, and the choice where the row is in this machine's
memory (where it stays on a device: device/draw.py). Knows no sequence: everything that the choice
depends on is in its `Choice`.

Order, as in the transformers library: penalties and bias on the logits; then, if there is a
grammar, only what it admits; then the filters of `drawing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from appliance.engine.drawing import Ids, Scores, draw, kth_largest, rooms
from appliance.engine.grammar.constraint import Mask
from appliance.engine.sampling import SamplingParams

IMPOSSIBLE = np.float32(-np.inf)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability under the model itself."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens, best first."""


@dataclass(frozen=True, slots=True)
class Edits:
    """What becomes of some logits: a positive one is divided by its factor and others are
    multiplied with it (CTRL, Keskar 2019), then the shift is added.

    Attributes:
        ids: int64 [n], each once.
        factors, shifts: float32 [n].
    """

    ids: Ids
    factors: Scores
    shifts: Scores

    def of(self, values: Scores) -> Scores:
        """What becomes of the logits `values` [n] of these tokens."""
        scaled = np.where(values > 0, values / self.factors, values * self.factors)
        edited: Scores = scaled + self.shifts
        return edited


@dataclass(frozen=True, slots=True)
class Choice:
    """How the token of one row is chosen.

    Attributes:
        allowed: [vocab], true for at least one token; None allows all.
    """

    params: SamplingParams
    edits: Edits | None = None
    allowed: Mask | None = None

    @property
    def changes(self) -> bool:
        """Whether it is not from the model's own logits, all of them."""
        return self.edits is not None or self.allowed is not None


class Row(Protocol):
    """Logits of one row, as its choice sees them."""

    def best(self) -> int:
        """The likeliest token."""
        ...

    def draw(self, share: float) -> int:
        """The token with `share` of the mass of all candidates to its left: 0 <= share < 1."""
        ...

    def logprob(self, token_id: int, top: int) -> TokenLogprob:
        """Of a token, and of the `top` most likely ones, under the model itself."""
        ...


class HostRow:
    """A row that is here. The array `logits` [vocab] is not changed."""

    def __init__(self, logits: Scores, choice: Choice) -> None:
        self._logits, self._choice = logits, choice

    def best(self) -> int:
        """The likeliest token."""
        return int(self._scores().argmax())

    def draw(self, share: float) -> int:
        """As every row's."""
        return draw(self._scores(), self._choice.params, share)

    def logprob(self, token_id: int, top: int) -> TokenLogprob:
        """As every row's."""
        return logprob(self._logits, token_id, top)

    def _scores(self) -> Scores:
        """Valid until the thread looks at another row."""
        scores, choice = self._logits, self._choice
        if choice.edits is not None:
            scores = rooms.row("edited", len(scores))
            scores[:] = self._logits
            scores[choice.edits.ids] = choice.edits.of(self._logits[choice.edits.ids])
        if choice.allowed is not None:
            masked = rooms.row("masked", len(scores))
            # 0 or minus infinity: copying where a mask says takes up to five times as long.
            with np.errstate(divide="ignore"):
                np.log(choice.allowed, out=masked, dtype=np.float32, casting="unsafe")
            masked += scores
            scores = masked
        return scores


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
