"""How long the pieces of prompts are, and which of them makes way for somebody who arrives.

Owns the rules of decisions 0089 and 0252. Beside others pieces are short, and shorter while
several callers are served or were lately. A sequence that is alone is
computed in long ones, of which one may be given up for a newcomer; then it goes on in a few short
ones that nobody interrupts, so it comes to its end whoever else arrives. Not thread-safe: the
engine's lock is held.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from appliance.engine.pace import Pace
from appliance.scheduler import Budget, Phase, Plan, Sequence

_LEAST_FOR_NEWCOMERS = 32
_SHORT_PIECES = 8
_LATELY_SECONDS = 10.0
"""Who asked so long ago at most is likely to ask again."""


class Pieces:
    """The token budget of each step."""

    def __init__(self, pace: Pace, clock: Callable[[], float]) -> None:
        self.pace = pace
        self._clock = clock
        self._came: dict[str, float] = {}
        """Callers who asked lately, the one who asked last at the end."""
        self._lone: Sequence | None = None
        """Whose long piece is being computed now."""
        self._interrupted: dict[Sequence, int] = {}
        """Who had one given up -> short ones that it still has before it."""
        self._newcomer = False
        """A long piece was given up for somebody who waits."""

    @property
    def settled(self) -> bool:
        """Nobody was interrupted, or whoever was has had its short pieces."""
        return not self._interrupted

    def make_way(self, caller: str) -> bool:
        """A request of `caller` arrives. True if what is being computed is to be given up."""
        self._came.pop(caller, None)
        self._came[caller] = self._clock()
        if self._lone is None or self._newcomer:
            return False
        self._newcomer = True
        self._interrupted[self._lone] = _SHORT_PIECES
        return True

    def budget(self, sequences: Collection[Sequence]) -> Budget:
        """The next step's, of all the sequences that there are."""
        alone = len(sequences) == 1 and self.settled
        # Steps are short for the sake of newcomers, so what is theirs is not cut.
        longer = self.pace.tokens(alone=alone)
        tokens = self.pace.tokens(alone=alone, shared=self._are_several(sequences))
        if self._newcomer:
            self._newcomer = False
            waiting = sum(s.uncomputed for s in sequences if not s.running)
            # Half of a step goes to whose turn it is, who may be the one that was interrupted.
            tokens = longer = min(tokens, max(_LEAST_FOR_NEWCOMERS, 2 * waiting))
        decoding = sum(s.phase is Phase.DECODE for s in sequences)
        return Budget(tokens + decoding, longer + decoding)

    def _are_several(self, sequences: Collection[Sequence]) -> bool:
        """Whether more than one caller is served, or was lately."""
        while self._came:
            first, came = next(iter(self._came.items()))
            if self._clock() - came <= _LATELY_SECONDS:
                break
            del self._came[first]
        return len(self._came.keys() | {sequence.caller for sequence in sequences}) > 1

    def begin(self, plan: Plan, *, alone: bool) -> None:
        """`plan` is computed from now on; `alone`: there is one sequence."""
        self._lone = None
        if alone and plan.prefills:
            (sequence,) = {chunk.sequence for chunk in plan.prefills}
            longest = max(chunk.count for chunk in plan.prefills)
            if longest > self.pace.tokens(alone=False) and sequence not in self._interrupted:
                self._lone = sequence

    def end(self, plan: Plan) -> None:
        """What was computed of the plan is there."""
        self._lone = None
        for sequence in {chunk.sequence for chunk in plan.prefills}:
            left = self._interrupted.pop(sequence, 0) - 1
            if left > 0:
                self._interrupted[sequence] = left

    def forget(self, sequence: Sequence) -> None:
        """It has ended."""
        self._interrupted.pop(sequence, None)

    def reset(self) -> None:
        """Every sequence has ended; who asked lately may ask again."""
        self._lone, self._newcomer = None, False
        self._interrupted.clear()
