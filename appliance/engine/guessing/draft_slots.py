"""What the slots of a draft model hold: the same slot for each sequence as the model that verifies.

    model's slot   t t t t t t t t t t g      g: sampled, not computed yet
    draft's slot   t t t t t t t x x          x: guesses of its own that were wrong
                   |-- agreed --|

Owns the tokens that were computed in each slot, and follows the moves of the model's. A slot is
never believed to hold what its sequence says now: tokens and namespace are compared, so whatever
happened to a sequence since (guesses that were wrong, a preemption, another owner) leaves a shorter
beginning and nothing wrong. Touches no memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from appliance.scheduler import Move, Sequence


@dataclass(slots=True)
class Held:
    """One slot's content.

    Attributes:
        tokens: whose keys and values are in the slot, from its beginning.
        namespace: whose they are; nobody else may find them.
        owner: the sequence that `tokens` were compared with last, up to `agreed`.
    """

    tokens: list[int] = field(default_factory=list)
    namespace: Hashable = None
    owner: Sequence | None = None
    agreed: int = 0

    def first(self, count: int) -> Held:
        """A copy of the first `count`."""
        agreed = min(self.agreed, count)
        return Held(self.tokens[:count], self.namespace, self.owner, agreed)


class DraftSlots:
    """Contents of `count` slots."""

    def __init__(self, count: int) -> None:
        self._held = [Held() for _ in range(count)]

    def __getitem__(self, slot: int) -> Held:
        return self._held[slot]

    def clear(self) -> None:
        """Nothing is in any slot."""
        self._held = [Held() for _ in self._held]

    def follow(self, moves: Iterable[Move]) -> list[Move]:
        """Do as the model's slots do; returns what is to be copied for it."""
        return [own for move in moves if (own := self._follow(move)) is not None]

    def _follow(self, move: Move) -> Move | None:
        source, target = self._held[move.source], self._held[move.target]
        if move.exchange:
            self._held[move.source], self._held[move.target] = target, source
            tokens = max(len(source.tokens), len(target.tokens))
        else:
            tokens = min(len(source.tokens), move.tokens)
            self._held[move.target] = source.first(tokens)
        return Move(move.source, move.target, tokens, exchange=move.exchange) if tokens else None

    def agree(self, slot: int, sequence: Sequence) -> int:
        """Keep in `slot` what is the beginning of `sequence`; how many tokens that are.

        All but its last one at most, which is computed anew for what may follow it.
        """
        held, said = self._held[slot], sequence.tokens
        if held.namespace != sequence.namespace:
            held.tokens.clear()
        if held.owner is not sequence:
            held.owner, held.namespace, held.agreed = sequence, sequence.namespace, 0
        same, most = held.agreed, min(len(held.tokens), len(said) - 1)
        while same < most and held.tokens[same] == said[same]:
            same += 1
        same = min(same, most)
        del held.tokens[same:]
        held.agreed = same
        return same

    def check_integrity(self, capacity: int) -> None:
        """No slot holds more than it can, nor agrees with more than it holds."""
        for held in self._held:
            assert held.agreed <= len(held.tokens) <= capacity
            assert held.owner is None or held.owner.namespace == held.namespace
            if held.owner is not None:
                assert held.tokens[: held.agreed] == held.owner.tokens[: held.agreed]
