"""Waiting sequences whose prefix a running one is computing just now.

Computing it beside the other would only slow both down: they wait until the other, their leader,
has the shared tokens, and then copy them. `n` sequences of one request thus compute their prompt
once. A leader has a slot and gets tokens in its turn, so nobody follows for ever.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.scheduler.prefix import Match
from appliance.scheduler.sequence import Phase, Sequence


def may_follow(sequence: Sequence, promise: Match) -> bool:
    """Not behind a lower priority, which may have to wait for others itself, nor with a share
    behind somebody without."""
    leader = promise.prefix.owner
    assert leader is not None
    if sequence.share is not None and not leader.reserved:
        return False
    return leader.priority >= sequence.priority


class Followers:
    """Each follower with its leader and the number of tokens that it waits for."""

    def __init__(self) -> None:
        self._waiting: dict[Sequence, tuple[Sequence, int]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting)

    def count(self, caller: str) -> int:
        """How many of `caller`'s follow."""
        return sum(sequence.caller == caller for sequence in self._waiting)

    def add(self, sequence: Sequence, promise: Match) -> None:
        """`sequence` follows the sequence that is to compute `promise`."""
        leader = promise.prefix.owner
        assert leader is not None
        self._waiting[sequence] = (leader, promise.tokens)

    def remove(self, sequence: Sequence) -> bool:
        """Forget a follower. False if it is none."""
        return self._waiting.pop(sequence, None) is not None

    def ready(self) -> list[Sequence]:
        """Take out those whose leader has gone far enough, or has gone; in order of arrival."""
        found = [
            follower
            for follower, (leader, tokens) in self._waiting.items()
            if leader.phase is not Phase.PREFILL or leader.computed >= tokens
        ]
        for follower in found:
            del self._waiting[follower]
        return sorted(found, key=lambda sequence: sequence.arrival)
