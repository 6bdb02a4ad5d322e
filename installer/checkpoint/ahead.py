"""The pieces of a tensor, worked on several at once and handed out in order.

Owns how many are under way: a few, so that memory does not follow the tensor's size. What is done
with a piece must need no other, and lets go of the interpreter where it takes long, as arithmetic
on arrays, reading and hashing do.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

_Piece = TypeVar("_Piece")
_Made = TypeVar("_Made")
_WORKERS = min(4, os.cpu_count() or 1)
"""Whoever writes and hashes what is made is kept busy by so many."""
_M_ARENA_MAX = -8
"""malloc.h of glibc."""
_pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="ahead")
"""One for all: the allocator keeps memory for each thread that there was."""


def ahead(work: Callable[[_Piece], _Made], pieces: Iterable[_Piece]) -> Iterator[_Made]:
    """`work` of each piece, in their order. Raises what it or `pieces` raises.

    `pieces` may come from another `ahead`, `work` may not call one.
    """
    waiting: deque[Future[_Made]] = deque()
    try:
        for piece in pieces:
            waiting.append(_pool.submit(work, piece))
            if len(waiting) >= _WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for unwanted in waiting:
            unwanted.cancel()
        wait(waiting)


def share_heap() -> None:
    """Let the threads allocate from one heap, where the system's allocator can (mallopt(3)).

    Each would have its own, which keeps the most that there ever was in it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
