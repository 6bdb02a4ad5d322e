"""Decides how many guessed tokens a step verifies, and keeps the books of how good they were.

Owns the rule. Each sequence estimates for each source of drafts how often the next token is
right; drafts that are not computed are compared with what was sampled all the same, so learning
costs nothing. The engine estimates what one more row of a decode batch costs, from the steps that
it runs. A step verifies as many tokens as give the most tokens a second by these estimates, and
none unless that is worth it: see docs/decisions/0095-when-speculation-pays.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from appliance.engine.guessing.drafting import Draft, Drafter, Source

WIDTHS = (1, 2, 4, 8)
"""Tokens beyond one that a decode batch takes of each sequence: few shapes, bound once each."""
_WORTH, _STILL_WORTH = 1.05, 1.0
"""Expected gain that switches speculation on, and below which it is switched off."""
_MEMORY, _LONG_MEMORY = 0.95, 0.99
"""An estimate's weight after each new observation: it looks back about 20 of them, or 100."""
_TRIED = 4.0
"""How many observations an estimate begins with."""
_PRIORS = {Source.GRAMMAR: 1.0, Source.PREDICTION: 0.8, Source.LONG: 0.5, Source.SHORT: 0.2}
"""How often right before anything is known. A caller who predicts is believed at first."""
_MODEL_PRIOR = 0.6
_ROW = 0.1
"""Cost of a row before it is measured, as a part of the step without drafts."""
_ROW_BOUNDS = (0.002, 4.0)
_LEARN, _LEARN_DEARER, _FORGET = 0.2, 0.5, 0.002
"""Weight of a new measurement, and of one that says that rows are dearer than thought; share of
the way back to `_ROW` for a step whose drafts are not computed."""
_FORGET_MODEL = 0.0005
"""The same for a draft model that is not asked: trying it again takes time of its own."""
_OUTLIER = 4.0


class Rate:
    """How often something is right, lately.

    Args:
        prior: before anything is known.
        memory: see `_MEMORY`.
    """

    def __init__(self, prior: float, memory: float = _MEMORY) -> None:
        self._memory = memory
        self._right = prior * _TRIED
        self._tried = _TRIED

    @property
    def value(self) -> float:
        return self._right / self._tried

    def learn(self, *, right: bool) -> None:
        self._right = self._right * self._memory + right
        self._tried = self._tried * self._memory + 1

    def fade(self, towards: float, share: float) -> None:
        """What nothing is learned of any more: go a `share` of the way."""
        self._right += share * (towards * self._tried - self._right)


class ModelRate(Rate):
    """A draft model's, over all sequences: what a new one begins with."""

    def __init__(self) -> None:
        super().__init__(_MODEL_PRIOR, _LONG_MEMORY)

    def forget(self) -> None:
        """A model that is not asked is never measured again: let it fade instead."""
        self.fade(_MODEL_PRIOR, _FORGET_MODEL)


class Guesses:
    """One sequence's drafts.

    Args:
        drafters: of this sequence alone.
        model: what is known of the draft model, if there is one.

    Attributes:
        draft: for the step under way, as long as it holds.
        accepted: tokens of the caller's prediction that were computed, and right.
    """

    def __init__(self, drafters: Sequence[Drafter], model: ModelRate | None = None) -> None:
        self._drafters = drafters
        self._model = model or ModelRate()
        self._rates = {source: Rate(prior) for source, prior in _PRIORS.items()}
        self._rates[Source.MODEL] = Rate(self._model.value)
        self.draft: Draft | None = None
        self._outright = False
        self._tried = self._read = 0
        self._predicted = 0
        self.accepted = 0

    @property
    def rejected(self) -> int:
        """Tokens of the caller's prediction that were computed in vain."""
        return self._predicted - self.accepted

    @property
    def certain(self) -> bool:
        """Whether the draft is what must come."""
        return self.draft is not None and self.draft.source is Source.GRAMMAR

    @property
    def weighed(self) -> bool:
        """Whether there is a draft, and the rule decides what is computed of it."""
        return self.draft is not None and not self._outright

    def force(self, tokens: tuple[int, ...], *, outright: bool) -> None:
        """Take what must come next for the draft, however long it is.

        `outright`: without the rule, which then sees no draft here.
        """
        self.draft, self._outright = Draft(tokens, Source.GRAMMAR), outright
        self._tried = self._read = 0

    def propose(self, most: int) -> None:
        """Find a draft of up to `most` tokens by the first drafter that has one."""
        self.draft, self._outright, self._tried, self._read = None, False, 0, 0
        if most > 0:
            proposals = (drafter.propose(most) for drafter in self._drafters)
            self.draft = next((draft for draft in proposals if draft is not None), None)

    @property
    def model_rate(self) -> float:
        """How often the draft model's next token is expected to be right."""
        return self._rates[Source.MODEL].value

    def forget_model(self) -> None:
        """The draft model was not asked: what was learned of it here gives way to the rest."""
        self._rates[Source.MODEL].fade(self._model.value, _FORGET)

    def offer(self, tokens: tuple[int, ...]) -> None:
        """The draft model's, for a sequence that has no draft."""
        assert self.draft is None
        self.draft = Draft(tokens, Source.MODEL)

    def expected(self, width: int, *, asked: bool = False) -> float:
        """Tokens of the draft that will be right if the first `width` are computed.

        `asked`: without one, of what the draft model would say.
        """
        if self._outright:
            return 0.0
        if self.draft is not None:
            rate, count = self._rates[self.draft.source].value, min(width, len(self.draft.tokens))
        else:
            rate, count = self.model_rate, width if asked else 0
        return sum(rate ** (place + 1) for place in range(count))

    def take(self, width: int) -> tuple[int, ...]:
        """The tokens that the step computes, `width` at most."""
        if self.draft is None:
            return ()
        tokens = self.draft.tokens[:width]
        self._tried = len(tokens)
        if self.draft.source is Source.PREDICTION:
            self._predicted += len(tokens)
        return tokens

    def book(self, token: int) -> bool:
        """Learn from the next sampled token. True if the draft had it and it was computed.

        Then the next row of logits counts, too.
        """
        draft, place = self.draft, self._read
        if draft is None or place >= max(1, self._tried):
            self.draft = None
            return False
        right = draft.tokens[place] == token
        self._rates[draft.source].learn(right=right)
        if draft.source is Source.MODEL:
            self._model.learn(right=right)
        self._read += 1
        holds = right and place < self._tried
        if not holds:
            self.draft = None
        elif draft.source is Source.PREDICTION:
            self.accepted += 1
        return holds


class Speculation:
    """One engine's rule.

    Args:
        most: tokens guessed for a sequence in one step; 0 switches speculation off.
    """

    def __init__(self, most: int) -> None:
        self._widths = tuple(width for width in WIDTHS if width <= most)
        self._costs: dict[int, _Cost] = {}
        self._on = False
        self.model = ModelRate()

    @property
    def most(self) -> int:
        """Tokens that can be guessed for a sequence in one step."""
        return max(self._widths, default=0)

    def choose(self, batch: Sequence[Guesses], widest: int) -> int:
        """How many tokens to compute of the drafts in this decode batch; 0: none.

        widest: what runner, budget and slots have room for. Rows are padded to the longest
        draft, so each of the batch's sequences pays for it.
        """
        if not any(guesses.weighed for guesses in batch):
            return 0
        cost = self._cost(len(batch))
        if not cost.known:
            return 0
        best, width = self._best(batch, widest, cost)
        self._on = best >= (_STILL_WORTH if self._on else _WORTH)
        if not self._on:
            cost.forget()
        return width if self._on else 0

    def gain_of_asking(
        self, batch: Sequence[Guesses], widest: int, asked: Collection[Guesses], seconds: float
    ) -> tuple[float, int]:
        """What it brings if the draft model guesses for `asked`, and the width to ask for.

        Tokens a second compared with the drafts that there are. The model takes `seconds` for each
        token of the width. (0, 0) before there is anything to compare with.
        """
        cost = self._cost(len(batch))
        if not cost.known:
            return 0.0, 0
        without, _ = self._best(batch, widest, cost)
        gain, width = self._best(batch, widest, cost, asked, seconds / cost.plain)
        return gain / max(without, 1.0), width

    def plain_seconds(self, batch: int) -> float:
        """What a step of so many sequences takes without drafts; 0 if that is not known."""
        return self._cost(batch).plain

    def measured(self, batch: int, width: int, seconds: float) -> None:
        """A decode batch of so many sequences with `width` guessed tokens each was computed."""
        self._cost(batch).learn(batch, width, seconds)

    def _best(
        self,
        batch: Sequence[Guesses],
        widest: int,
        cost: _Cost,
        asked: Collection[Guesses] = (),
        asking: float = 0.0,
    ) -> tuple[float, int]:
        """(tokens a second compared with none guessed, width) of the best width.

        `asking` is what a token of the width costs where the draft model guesses for `asked`.
        """
        size = len(batch)
        gains = [
            (
                (1 + sum(each.expected(width, asked=each in asked) for each in batch) / size)
                / (1 + (cost.row * size + asking) * width),
                width,
            )
            for width in self._widths
            if width <= min(widest, cost.widest)
        ]
        return max(gains, default=(0.0, 0))

    def _cost(self, batch: int) -> _Cost:
        """What is known of this batch size, at first what the nearest size knows of a row."""
        known = self._costs.get(batch)
        if known is None:
            nearest = min(self._costs, key=lambda size: abs(size - batch), default=None)
            row = _ROW if nearest is None else self._costs[nearest].row
            known = self._costs[batch] = _Cost(row)
        return known


class _Cost:
    """What steps of one batch size take.

    Attributes:
        row: one more row, as a part of the step without any.
        widest: guessed tokens of each sequence that may be tried: the double of what was measured,
            so that a first try costs little where rows are dear.
        plain: seconds of a step without drafts; 0 before there was one.
    """

    def __init__(self, row: float) -> None:
        self.row = row
        self.widest = 1
        self.plain = 0.0
        self._seen: set[int] = set()

    @property
    def known(self) -> bool:
        """Whether there is anything to compare with."""
        return self.plain > 0

    def learn(self, batch: int, width: int, seconds: float) -> None:
        """Take a measurement, but for the first of each width, which prepares it."""
        if width not in self._seen:
            self._seen.add(width)
        elif width == 0:
            seconds = min(seconds, _OUTLIER * self.plain) if self.plain else seconds
            self.plain += (seconds - self.plain) * (_LEARN if self.plain else 1)
        elif self.plain:
            row = (seconds / self.plain - 1) / (batch * width)
            low, high = _ROW_BOUNDS
            row = min(max(row, low), high)
            self.row += (row - self.row) * (_LEARN_DEARER if row > self.row else _LEARN)
            self.widest = max(self.widest, 2 * width)

    def forget(self) -> None:
        """An estimate that forbids drafts is never measured again: let it fade instead."""
        if self.row > _ROW:
            self.row += (_ROW - self.row) * _FORGET
