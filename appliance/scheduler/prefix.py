"""Which slots hold which token prefixes, found in time that grows with the match only.

Tokens are cut into blocks of a fixed size, and each whole block gets a hash over itself and the
hash before it, the first one's over the namespace; so equal hashes stand for equal prefixes of
one namespace. The index maps a hash to the slots' contents that have it. A hash is a hint and
never a proof: tokens and namespace are compared before anything is reused, so a collision, made
on purpose or not, costs a look and nothing else. Blocks only find who shares the most; how much
that is is then counted to the token.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

from appliance.scheduler.sequence import Sequence
from appliance.scheduler.snapshots import Snapshots


class Prefix:
    """What one slot holds: keys and values of the first `computed` of `tokens`.

    Attributes:
        tokens, chain, namespace: those of the sequence that computed it. The lists are shared
            with it; that they may grow behind `computed` does no harm.
        owner: the running sequence that computes on it; None if it is kept as a cached prefix.
        indexed: how many of its blocks are in the index.
        snapshots: of its running state, in models that have one; it can be cut there alone.
        used: time of its last use, in the slot table's count.
    """

    __slots__ = (
        *("chain", "computed", "indexed", "namespace", "owner", "slot", "snapshots", "tokens"),
        "used",
    )

    def __init__(
        self, sequence: Sequence, slot: int, computed: int, snapshots: Snapshots | None = None
    ) -> None:
        self.tokens = sequence.tokens
        self.chain = sequence.chain
        self.namespace: Hashable = sequence.namespace
        self.owner: Sequence | None = sequence
        self.slot = slot
        self.computed = computed
        self.indexed = 0
        self.snapshots = snapshots
        self.used = 0


@dataclass(frozen=True, slots=True)
class Match:
    """The first `tokens` of a sequence are those of `prefix`."""

    prefix: Prefix
    tokens: int


class PrefixIndex:
    """Prefixes by the hashes of their blocks of `block` tokens; matches are `anew` tokens shorter
    than what is equal."""

    def __init__(self, block: int, anew: int = 0) -> None:
        assert 0 <= anew < block
        self.block = block
        self._anew = anew
        self._holders: dict[int, dict[Prefix, None]] = {}

    def note(self, prefix: Prefix) -> None:
        """Enter the whole blocks that were computed since the last time."""
        blocks = prefix.computed // self.block
        if blocks == prefix.indexed:
            return
        extend(prefix.chain, prefix.namespace, prefix.tokens, blocks, self.block)
        for key in prefix.chain[prefix.indexed : blocks]:
            self._holders.setdefault(key, {})[prefix] = None
        prefix.indexed = blocks

    def drop(self, prefix: Prefix) -> None:
        """Forget `prefix`: its slot is overwritten."""
        for key in prefix.chain[: prefix.indexed]:
            # Two blocks of one prefix may have one hash: then it is gone already.
            holders = self._holders.get(key, {})
            holders.pop(prefix, None)
            if not holders:
                self._holders.pop(key, None)
        prefix.indexed = 0

    def longest(self, sequence: Sequence) -> Match | None:
        """The longest prefix of `sequence` without its last token; None below a block.

        Of several, one that ends there is best, since nothing else is lost by taking its slot.
        """
        limit = (len(sequence.tokens) - 1) // self.block
        extend(sequence.chain, sequence.namespace, sequence.tokens, limit, self.block)
        blocks = 0
        while blocks < limit and sequence.chain[blocks] in self._holders:
            blocks += 1
        for depth in range(blocks, 0, -1):
            tokens = depth * self.block
            holders = self._holders[sequence.chain[depth - 1]]
            equal = [prefix for prefix in holders if self._equal(prefix, sequence, tokens)]
            if equal:
                matches = [
                    Match(prefix, _common(prefix, sequence, tokens) - self._anew)
                    for prefix in equal
                ]
                return max(matches, key=lambda match: (match.tokens, -match.prefix.computed))
        return None

    def sharing(self, sequence: Sequence) -> Iterator[Match]:
        """Every prefix that has a block or more in common with `sequence` but for its last token,
        with all that is equal."""
        limit = (len(sequence.tokens) - 1) // self.block
        extend(sequence.chain, sequence.namespace, sequence.tokens, limit, self.block)
        for prefix in self._holders.get(sequence.chain[0], ()) if limit else ():
            blocks, most = 1, min(limit, prefix.indexed)
            while blocks < most and prefix.chain[blocks] == sequence.chain[blocks]:
                blocks += 1
            known = blocks * self.block
            while known and not self._equal(prefix, sequence, known):
                known -= self.block
            if known:
                yield Match(prefix, _common(prefix, sequence, known))

    def check_integrity(self, prefixes: list[Prefix]) -> None:
        """Exactly `prefixes` are known, each under the hashes of all of its whole blocks."""
        known = {prefix for holders in self._holders.values() for prefix in holders}
        assert known == {prefix for prefix in prefixes if prefix.indexed}
        for prefix in prefixes:
            assert prefix.indexed == prefix.computed // self.block
            for key in prefix.chain[: prefix.indexed]:
                assert prefix in self._holders[key]

    def _equal(self, prefix: Prefix, sequence: Sequence, tokens: int) -> bool:
        return (
            prefix.namespace == sequence.namespace
            and prefix.computed >= tokens
            and prefix.tokens[:tokens] == sequence.tokens[:tokens]
        )


def _common(prefix: Prefix, sequence: Sequence, tokens: int) -> int:
    """How many first tokens are equal, of which `tokens` are known to be."""
    end = min(prefix.computed, len(sequence.tokens) - 1)
    while tokens < end and prefix.tokens[tokens] == sequence.tokens[tokens]:
        tokens += 1
    return tokens


def extend(
    chain: list[int], namespace: Hashable, tokens: list[int], blocks: int, block: int
) -> None:
    """Make `chain` at least `blocks` hashes long."""
    for number in range(len(chain), blocks):
        before = chain[-1] if chain else hash(namespace)
        chain.append(hash((before, *tokens[number * block : (number + 1) * block])))


def latest(found: Iterable[tuple[Match, Iterable[int]]]) -> Match | None:
    """Of prefixes that share tokens, each with the places where it can be cut, the longest.

    Of several, one that ends there is best, since nothing else is lost by taking its slot.
    """
    cut = (
        Match(match.prefix, max((at for at in places if at <= match.tokens), default=0))
        for match, places in found
    )
    usable = [match for match in cut if match.tokens]
    return max(usable, key=lambda match: (match.tokens, -match.prefix.computed), default=None)
