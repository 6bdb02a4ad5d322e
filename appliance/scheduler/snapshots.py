"""Where a sequence can go on whose model has layers that keep a running state.

Keys and values lie side by side for each token, and any first part of them can be reused. A running
state has read all tokens up to one place and cannot go back: a prefix can be reused where a state
stands, and nowhere in between.

    slot   t t t t t t t t t t t t . .
           |-----| 4                      a snapshot, set aside while the prompt was computed
           |-------------| 8              another
           |---------------------| 12     the slot's own, behind all that is computed

Owns which places of a prompt get a snapshot. One is just before its end, where the next turn of a
conversation parts from this one, since what the model thought is left out there. One is where the
prompt parts from another that is known: the next one with this beginning will part there, too (Pan
et al., Marconi, MLSys 2025). Where it parts from none that is known, it is behind its opening, if
whoever wrote the prompt says how long that is.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing

_LAST = 8
"""Tokens at the end of a prompt that the next turn may not repeat: they open the answer."""
_WORTH = 4
"""Blocks that a snapshot must save: it cuts the piece of a prompt that it lies in in two."""


class Snapshots:
    """Those of one slot's content.

    Attributes:
        numbers: under which it may have some.
        at: place, in tokens -> the number of what stands there. What is planned is here, too: the
            place lies behind all that is computed then, where nobody can go on.
    """

    __slots__ = ("at", "numbers")

    def __init__(self, numbers: Listing[int] = ()) -> None:
        self.numbers = tuple(numbers)
        self.at: dict[int, int] = {}

    def plan(self, place: int) -> int:
        """The number of one that will stand at `place`; if all are taken, that of the last."""
        if place not in self.at:
            free = set(self.numbers) - set(self.at.values())
            self.at[place] = min(free) if free else self.at.pop(max(self.at))
        return self.at[place]

    def cut(self, tokens: int) -> None:
        """Forget those behind the first `tokens`."""
        self.at = {place: number for place, number in self.at.items() if place <= tokens}

    def check_integrity(self) -> None:
        """Each has a number of its own."""
        assert set(self.at.values()) <= set(self.numbers)
        assert len(set(self.at.values())) == len(self.at)


def places(
    length: int, begun: int, shared: int, block: int, *, opening: int = 0
) -> tuple[int, ...]:
    """Where a prompt of `length` tokens gets snapshots, in order.

    It goes on behind the first `begun`, and has the first `shared` in common with what is known;
    others are likely to begin with its first `opening`. What is known goes before what is likely:
    an opening that differs each time, by the hour that is in it, say, must not hide where it does.
    """

    def worthy(*found: int) -> set[int]:
        whole = {at // block * block for at in found}
        return {at for at in whole if at >= begun + _WORTH * block}

    forks = worthy(shared) or worthy(min(opening, length - 1))
    return tuple(sorted(forks | worthy(length - _LAST)))
