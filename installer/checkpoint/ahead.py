"""The pieces of a tensor, worked on several at once and handed out in order.

Owns how many are under way: a few, so that memory does not follow the tensor's size. What is done
with a piece must need no other, and lets go of the interpreter where it takes long, as arithmetic
on arrays, reading and hashing do.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Piece = TypeVar("_Piece")
_Made = TypeVar("_Made")
_MOST = 4
"""Whoever writes and hashes what is made is kept busy by so many."""


def ahead(work: Callable[[_Piece], _Made], pieces: Iterable[_Piece]) -> Iterator[_Made]:
    """`work` of each piece, in their order. Raises what it or `pieces` raises."""
    workers = min(_MOST, os.cpu_count() or 1)
    waiting: deque[Future[_Made]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for piece in pieces:
                waiting.append(pool.submit(work, piece))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for unwanted in waiting:
                unwanted.cancel()
