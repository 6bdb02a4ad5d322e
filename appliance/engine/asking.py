"""When a draft model or a head is asked, and for whom: where guesses are worth what they take.

Owns the rule and what asking costs. Sequences that have a draft of their own (a prediction, a
repetition) are not asked for. The time of the draft model counts like that of the rows which
verify; how often it is right is estimated for each sequence, beginning with how often it was right
for others. What a sequence said before is computed by the draft model only when it has said so much
since that it would have gained as much: see docs/decisions/0234-when-a-draft-model-is-asked.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Listing
from dataclasses import dataclass

from appliance.engine.guessing.guesser import Guesser
from appliance.engine.guessing.speculation import Guesses, Speculation
from appliance.scheduler import Sequence

_WORTH, _STILL_WORTH = 1.05, 1.0
"""Expected gain that has it asked, and below which it is not asked any more."""
_HOPELESS = 0.2
"""A sequence for which it is right less often is left out, whatever the others gain."""
_ROUND = 0.1
"""Cost of a guess for the whole batch before it is measured, as a part of the step."""
_LEARN = 0.2
"""Weight of a new measurement."""
_LEAST = 16
"""Tokens; catching up with fewer takes as long as a guess."""
_OUTLIER = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A decoding sequence for which `most` tokens may be guessed."""

    sequence: Sequence
    guesses: Guesses
    most: int

    @property
    def slot(self) -> int:
        slot = self.sequence.slot
        assert slot is not None, "it decodes"
        return slot


class Asking:
    """One engine's rule.

    Args:
        clock: seconds.
    """

    def __init__(
        self, model: Guesser, speculation: Speculation, clock: Callable[[], float]
    ) -> None:
        self.model = model
        self._speculation = speculation
        self._clock = clock
        self._rounds: dict[int, float] = {}
        self._seen: set[int] = set()
        self._each = 0.0
        self._on = False

    def ask(self, batch: Listing[Candidate], widest: int, most: int) -> None:
        """Give drafts to those of `batch`, one step's decoding sequences, who have none.

        widest: guessed tokens of each that runner, budget and slots have room for.
        most: tokens that may be computed to catch up with what was said before.
        """
        behind = {each: count for each in batch if (count := self._behind(each)) is not None}
        everyone = [each.guesses for each in batch]
        gain, width = self._gain(everyone, widest, list(behind))
        self._on = gain >= (_STILL_WORTH if self._on else _WORTH)
        if not self._on:
            self._forget(batch)
            return
        self._catch_up(behind, self._saved(len(batch), gain), most)
        ready = [each for each, count in behind.items() if count <= self.model.ready]
        gain, width = self._gain(everyone, widest, ready)
        if gain >= _STILL_WORTH:
            self._guess({each.slot: each for each in ready}, width)

    def _behind(self, each: Candidate) -> int | None:
        """What of it is to be computed before its first guess; None if it is not asked for."""
        if each.guesses.draft is not None or each.most <= 0:
            return None
        if each.guesses.model_rate < _HOPELESS:
            each.guesses.forget_model()
            return None
        return self.model.behind(each.slot, each.sequence)

    def _gain(
        self, batch: Listing[Guesses], widest: int, asked: Listing[Candidate]
    ) -> tuple[float, int]:
        if not asked:
            return 0.0, 0
        room = min(widest, *(self.model.room(each.sequence) for each in asked))
        guesses = {each.guesses for each in asked}
        plain = self._speculation.plain_seconds(len(batch))
        seconds = self._round(len(asked), plain)
        return self._speculation.gain_of_asking(batch, room, guesses, seconds)

    def _round(self, asked: int, plain: float) -> float:
        """Seconds of one guess for so many: as measured, or for the nearest number that was."""
        nearest = min(self._rounds, key=lambda size: abs(size - asked), default=None)
        return _ROUND * plain if nearest is None else self._rounds[nearest]

    def _saved(self, size: int, gain: float) -> float:
        """Seconds that each token of a sequence costs less."""
        return self._speculation.plain_seconds(size) * (1 - 1 / gain)

    def _catch_up(self, behind: dict[Candidate, int], saved: float, most: int) -> None:
        """Compute what is worth it by now of what is missing, the least first; update `behind`."""
        base = self._round(1, 0.0)
        due = {
            each: count
            for each, count in sorted(behind.items(), key=lambda pair: pair[1])
            if count > self.model.ready
            and each.sequence.generated * saved >= base + count * self._each
        }
        if not due:
            return
        start = self._clock()
        done = self.model.catch_up({each.slot: each.sequence for each in due}, most)
        if done >= _LEAST:
            self._learn_each((self._clock() - start) / done)
        for each in due:
            count = self.model.behind(each.slot, each.sequence)
            assert count is not None, "it was there before"
            behind[each] = count

    def _guess(self, ready: Mapping[int, Candidate], width: int) -> None:
        start = self._clock()
        guessed = self.model.guess({slot: each.sequence for slot, each in ready.items()}, width)
        self._learn_round(len(ready), (self._clock() - start) / width)
        for slot, tokens in guessed.items():
            each = ready[slot]
            each.guesses.offer(tokens[: each.most])

    def _learn_round(self, asked: int, seconds: float) -> None:
        """Take a measurement, but for the first of each number, which prepares it."""
        if asked not in self._seen:
            self._seen.add(asked)
        elif asked not in self._rounds:
            self._rounds[asked] = seconds
        else:
            known = self._rounds[asked]
            self._rounds[asked] += (min(seconds, _OUTLIER * known) - known) * _LEARN

    def _learn_each(self, seconds: float) -> None:
        known = self._each
        self._each += (seconds - known) * (_LEARN if known else 1)

    def _forget(self, batch: Listing[Candidate]) -> None:
        self._speculation.model.forget()
        for each in batch:
            each.guesses.forget_model()
