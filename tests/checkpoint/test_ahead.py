"""Pieces that are worked on ahead come in order, few at a time, and failures come through."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from installer.checkpoint.ahead import ahead
from installer.checkpoint.tensors import _turned


def test_what_is_made_comes_in_the_order_of_the_pieces() -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.02 if number < 2 else 0)
        return number * number

    assert list(ahead(slow_at_first, range(20))) == [n * n for n in range(20)]
    assert list(ahead(slow_at_first, [])) == []


def test_few_pieces_are_taken_before_they_are_wanted() -> None:
    taken: list[int] = []

    def pieces() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    made = ahead(abs, pieces())
    next(made)
    assert len(taken) < 20
    made.close()  # type: ignore[attr-defined]  # a generator


def test_one_may_feed_another() -> None:
    assert list(ahead(abs, ahead(lambda n: -n, range(50)))) == list(range(50))


@pytest.mark.parametrize("place", ["work", "pieces"])
def test_a_failure_is_raised_where_the_results_are_taken(place: str) -> None:
    def pieces() -> Iterator[int]:
        yield from (1, 2, 0)
        if place == "pieces":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda n: 1 // (n or int(place == "pieces")), pieces()))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(1, 1), (513, 79), (1030, 241), (3, 700)])
def test_a_matrix_turned_by_blocks_is_its_transpose(
    shape: tuple[int, int], dtype: type[np.generic]
) -> None:
    matrix = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    assert np.array_equal(_turned(matrix), matrix.T.astype(np.float32))
