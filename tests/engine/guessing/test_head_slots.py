"""What a head's books say of its cache is what is in it, whatever happened to the sequences.

Memory is pretended: each position holds the tokens that it was computed from, each state those
that it stands behind.
"""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine.guessing.head_slots import HeadSlots
from appliance.engine.slot_pool import Array
from appliance.scheduler import Move, Sequence

SLOTS, CAPACITY = 4, 12
Words = list[int]


def code(words: Words) -> float:
    """A number for each list of ones and twos that is not longer than a slot."""
    return float(int("".join(map(str, words)) or "0"))


def states(words: Words, start: int) -> Array:
    """Of `words` from `start` on."""
    ends = range(start + 1, len(words) + 1)
    return np.array([[code(words[:end])] for end in ends], np.float32).reshape(-1, 1)


class Memory:
    """The head's cache."""

    def __init__(self) -> None:
        self.slots: list[list[float]] = [[] for _ in range(SLOTS)]

    def fill(self, slots: HeadSlots, slot: int, sequence: Sequence, count: int) -> None:
        """As the head does: position p from the state behind p and from token p + 1."""
        told, memory = slots[slot], self.slots[slot]
        for state in told.states[:count]:
            behind = sequence.tokens[: told.filled + 1]
            assert state[0] == np.float32(code(behind)), "the state of another"
            memory[told.filled :] = [code(sequence.tokens[: told.filled + 2])]
            told.filled += 1
        del told.states[:count]

    def move(self, move: Move) -> None:
        source, target = self.slots[move.source], self.slots[move.target]
        first, second = source[: move.tokens], target[: move.tokens]
        target[: move.tokens] = first
        if move.exchange:
            source[: move.tokens] = second


def words(chance: random.Random, least: int, most: int) -> Words:
    return [chance.choice((1, 2)) for _ in range(chance.randint(least, most))]


def told_once_more(chance: random.Random, slots: HeadSlots, slot: int, sequence: Sequence) -> None:
    """The model computes on from somewhere, with guesses that may be wrong behind what was said."""
    said = sequence.tokens
    start = chance.randint(0, min(len(slots[slot].tokens) + 1, len(said) - 1))
    end = chance.randint(start + 1, len(said))
    computed = said[:end] + (words(chance, 0, CAPACITY - end) if end == len(said) else [])
    slots.tell(slot, sequence, start, computed[start:], states(computed, start))


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 1 << 32))
def test_what_is_filled_and_what_is_kept_are_the_beginning_of_the_sequence(seed: int) -> None:
    chance, slots, memory = random.Random(seed), HeadSlots(SLOTS), Memory()
    # Some begin alike, and go on differently.
    sequences = [Sequence(words(chance, 2, 6), namespace=name) for name in "aab"]
    sequences.append(Sequence([*sequences[0].tokens, 2], namespace="a"))
    for _ in range(60):
        source, target = chance.sample(range(SLOTS), 2)
        if chance.random() < 0.4:
            move = Move(source, target, chance.randint(0, CAPACITY), chance.random() < 0.4)
            for own in slots.follow([move]):
                memory.move(own)
        slot, sequence = chance.randrange(SLOTS), chance.choice(sequences)
        before = slots[slot].namespace
        told_once_more(chance, slots, slot, sequence)
        same = slots.agree(slot, sequence)
        told, said = slots[slot], sequence.tokens
        assert told.tokens == said[:same]
        assert same < len(said)
        assert memory.slots[slot][: told.filled] == [
            code(said[: p + 2]) for p in range(told.filled)
        ]
        kept = states(said[:same], told.filled)
        assert np.array_equal(np.array(told.states, np.float32).reshape(-1, 1), kept)
        assert told.filled == 0 or before == sequence.namespace, "nobody finds another's"
        memory.fill(slots, slot, sequence, chance.randint(0, len(told.states)))
        if len(said) < CAPACITY:
            said.extend(words(chance, 0, 1))
        slots.check_integrity(CAPACITY)


def test_a_position_that_was_made_of_anothers_next_token_is_not_believed() -> None:
    slots = HeadSlots(1)
    one, other = Sequence([1, 2, 1, 1], namespace="a"), Sequence([1, 2, 1, 2, 2], namespace="a")
    slots.tell(0, one, 0, [1, 2, 1], states([1, 2, 1], 0))
    Memory().fill(slots, 0, one, 3)
    assert slots.agree(0, one) == 3
    assert slots.agree(0, other) == 2, "position 2 has one's last token in it"
    slots.tell(0, other, 2, [1, 2], states([1, 2, 1, 2], 2))
    assert (slots.agree(0, other), slots[0].filled, len(slots[0].states)) == (4, 2, 2)


def test_what_comes_behind_a_gap_is_of_no_use() -> None:
    slots = HeadSlots(1)
    sequence = Sequence([1, 2, 1, 1], namespace="a")
    slots.tell(0, sequence, 1, [2, 1], states([1, 2, 1], 1))
    assert slots.agree(0, sequence) == 0
    slots.tell(0, sequence, 0, [1, 2, 1], states([1, 2, 1], 0))
    assert slots.agree(0, sequence) == 3


def test_states_are_copied_so_that_no_run_is_kept_in_memory() -> None:
    slots, given_states = HeadSlots(1), np.ones((3, 1), np.float32)
    slots.tell(0, Sequence([1, 2, 1]), 0, [1, 2, 1], given_states)
    given_states[:] = 0
    assert [float(state[0]) for state in slots[0].states] == [1, 1, 1]
    assert all(state.base is None for state in slots[0].states)
