"""What a draft's slots are said to hold is what is in them, whatever happened to the sequences."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine.guessing.draft_slots import DraftSlots
from appliance.scheduler import Move, Sequence

SLOTS, CAPACITY = 4, 12


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 32))
def test_slots_hold_the_beginning_of_their_sequence_and_nothing_else(seed: int) -> None:
    chance, slots = random.Random(seed), DraftSlots(SLOTS)
    memory: list[list[int]] = [[] for _ in range(SLOTS)]
    sequences = [Sequence(words(chance, 1, CAPACITY), namespace=name) for name in ("a", "a", "b")]
    for _ in range(40):
        source, target = chance.sample(range(SLOTS), 2)
        if chance.random() < 0.5:
            move = Move(source, target, chance.randint(0, CAPACITY), chance.random() < 0.5)
            for own in slots.follow([move]):
                copy(memory, own)
        slot, sequence = chance.randrange(SLOTS), chance.choice(sequences)
        before = slots[slot].namespace
        agreed = slots.agree(slot, sequence)
        held = slots[slot].tokens
        assert len(held) == agreed < len(sequence.tokens)
        assert held == memory[slot][:agreed] == sequence.tokens[:agreed]
        assert agreed == 0 or before == sequence.namespace, "nobody finds another's tokens"
        # Computed: some of what the sequence said, and guesses that may be wrong.
        more = sequence.tokens[agreed:][: chance.randint(0, 3)] + words(chance, 0, 3)
        more = more[: CAPACITY - agreed]
        memory[slot][agreed : agreed + len(more)] = more
        held.extend(more)
        if len(sequence.tokens) < CAPACITY:
            sequence.tokens.extend(words(chance, 0, 1))
        slots.check_integrity(CAPACITY)


def words(chance: random.Random, least: int, most: int) -> list[int]:
    return [chance.choice((1, 2)) for _ in range(chance.randint(least, most))]


def copy(memory: list[list[int]], move: Move) -> None:
    """As a pool does, with rests of longer contents behind what is moved."""
    source, target = memory[move.source], memory[move.target]
    first, second = source[: move.tokens], target[: move.tokens]
    target[: move.tokens] = first
    if move.exchange:
        source[: move.tokens] = second


def test_an_owner_that_comes_back_finds_what_was_computed_of_it() -> None:
    slots = DraftSlots(2)
    sequence, other = Sequence([1, 2, 3, 4], namespace="a"), Sequence([9, 9], namespace="a")
    assert slots.agree(0, sequence) == 0
    slots[0].tokens.extend([1, 2, 3])
    assert slots.follow([Move(0, 1, 2)]) == [Move(0, 1, 2)]
    assert slots.agree(0, other) == 0
    assert slots.agree(1, sequence) == 2


def test_what_holds_nothing_is_not_copied() -> None:
    slots = DraftSlots(2)
    assert slots.follow([Move(0, 1, 50), Move(0, 1, 50, exchange=True)]) == []
