"""What a head knows of each slot of its model: which states it was told, and what it made of them.

A head's position p is computed from the model's state behind token p and from token p + 1. So

    token               0 1 2 3 4 5 6 7 8
    model's states      s s s s s s s s        told, as the model computed them
    head's positions    h h h h h . . .        filled; the states behind them are kept
                                  |---| kept

Owns these books and the states that are kept, and follows the moves of the model's slots. A slot
is never believed to be of the sequence that has it now: tokens and namespace are compared, so
whatever happened since (guesses that were wrong, a preemption, another owner) leaves a shorter
beginning and nothing wrong. Touches no cache.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field

from appliance.engine.slot_pool import Array
from appliance.scheduler import Move, Sequence


@dataclass(slots=True)
class Told:
    """One slot's books.

    Attributes:
        tokens: behind which the model's states are known, from the beginning on.
        filled: positions of the head that are in its cache. The last one was computed from the
            token behind all of `tokens` if there are no more than it.
        states: of the positions that are not filled, [hidden] each.
        namespace: whose they are; nobody else may find them.
        owner: the sequence that `tokens` were compared with last, up to `agreed`.
    """

    tokens: list[int] = field(default_factory=list)
    filled: int = 0
    states: list[Array] = field(default_factory=list)
    namespace: Hashable = None
    owner: Sequence | None = None
    agreed: int = 0

    def first(self, count: int) -> Told:
        """A copy of the first `count`."""
        filled, agreed = min(self.filled, count), min(self.agreed, count)
        states = self.states[: count - filled]
        return Told(self.tokens[:count], filled, states, self.namespace, self.owner, agreed)

    def cut(self, count: int) -> None:
        """Keep the first `count`."""
        del self.tokens[count:]
        self.filled = min(self.filled, count)
        del self.states[count - self.filled :]
        self.agreed = min(self.agreed, count)


class HeadSlots:
    """Books of `count` slots."""

    def __init__(self, count: int) -> None:
        self._told = [Told() for _ in range(count)]

    def __getitem__(self, slot: int) -> Told:
        return self._told[slot]

    def clear(self) -> None:
        """Nothing is known of any slot."""
        self._told = [Told() for _ in self._told]

    def follow(self, moves: Iterable[Move]) -> list[Move]:
        """Do as the model's slots do; returns what is to be copied in the head's cache."""
        return [own for move in moves if (own := self._follow(move)) is not None]

    def tell(
        self, slot: int, sequence: Sequence, start: int, tokens: Listing[int], states: Array
    ) -> None:
        """The model has computed `tokens` of `sequence` from `start` on, with these states.

        states: [len(tokens), hidden]; copied. What lies behind a gap is of no use.
        """
        known = self.agree(slot, sequence) - start
        if known < 0:
            return
        told = self._told[slot]
        told.tokens.extend(tokens[known:])
        told.states.extend(state.copy() for state in states[known:])

    def agree(self, slot: int, sequence: Sequence) -> int:
        """Keep of `slot` what is of the beginning of `sequence`; how many tokens that are.

        All but its last one at most, behind which the model's state is never needed twice.
        """
        told, said = self._told[slot], sequence.tokens
        if told.namespace != sequence.namespace:
            told.cut(0)
        another = told.owner is not sequence
        if another:
            told.owner, told.namespace, told.agreed = sequence, sequence.namespace, 0
        same, most = told.agreed, min(len(told.tokens), len(said) - 1)
        while same < most and told.tokens[same] == said[same]:
            same += 1
        same = min(same, most)
        if another and told.filled >= same:
            # The last position that is filled was computed from somebody else's next token.
            same = max(0, same - 1)
        told.cut(same)
        told.agreed = same
        return same

    def check_integrity(self, capacity: int) -> None:
        """Every state is filled in or kept; nothing is longer than it can be."""
        for told in self._told:
            assert told.agreed <= len(told.tokens) <= capacity
            assert told.filled <= len(told.tokens) == told.filled + len(told.states)
            assert told.owner is None or told.owner.namespace == told.namespace
            if told.owner is not None:
                assert told.tokens[: told.agreed] == told.owner.tokens[: told.agreed]

    def _follow(self, move: Move) -> Move | None:
        source, target = self._told[move.source], self._told[move.target]
        if move.exchange:
            self._told[move.source], self._told[move.target] = target, source
            filled = max(source.filled, target.filled)
        else:
            self._told[move.target] = source.first(move.tokens)
            filled = self._told[move.target].filled
        return Move(move.source, move.target, filled, exchange=move.exchange) if filled else None
