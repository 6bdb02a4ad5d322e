"""The engine of one embedding model: step() embeds one batch of texts of similar length.

Owns the queue of requests and takes turns between them, so that a large one does not keep
small ones waiting. Callers add and cancel from any thread; one thread calls step().
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from appliance.engine.encoder_runner import Vectors
from appliance.errors import CapacityError


@dataclass(frozen=True, slots=True)
class Embedded:
    """All of a request's vectors, [texts, dimensions], in the order of the texts."""

    vectors: Vectors


@dataclass(frozen=True, slots=True)
class EmbeddingFailed:
    """The request was dropped: cancelled, or a step failed."""

    cancelled: bool


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    call: int
    event: Embedded | EmbeddingFailed


@dataclass(slots=True)
class EmbeddingCounters:
    steps: int = 0
    prompt_tokens: int = 0
    finished: int = 0
    cancelled: int = 0


class Encoder(Protocol):
    """Embeds a batch of token id lists: [len(batch), dimensions]."""

    def run(self, batch: Sequence[Sequence[int]]) -> Vectors: ...


@dataclass(slots=True, eq=False)
class _Request:
    call: int
    texts: Sequence[Sequence[int]]
    batches: deque[list[int]]
    """Indices into `texts`, longest texts first."""
    rows: dict[int, Vectors] = field(default_factory=dict)


class EmbeddingEngine:
    """Batches by length over one encoder.

    Args:
        token_budget: tokens of a batch at most, padding included; one text always fits.
        max_waiting: requests that may wait beside the one whose turn it is.
    """

    def __init__(self, runner: Encoder, *, token_budget: int, max_waiting: int) -> None:
        self._runner = runner
        self._token_budget = token_budget
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._requests: deque[_Request] = deque()
        self._cancelled: set[int] = set()
        self.counters = EmbeddingCounters()

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._requests)

    def add(self, call: int, texts: Sequence[Sequence[int]]) -> None:
        """Queue a request of token id lists, none empty. Raises CapacityError."""
        assert texts
        assert all(texts)
        request = _Request(call, texts, batches(texts, self._token_budget))
        with self._lock:
            if len(self._requests) > self._max_waiting:
                raise CapacityError(
                    f"the queue is full: {len(self._requests)} requests wait",
                    hint="try again when others have finished",
                    code="queue_full",
                )
            self._requests.append(request)

    def cancel(self, call: int) -> None:
        """Drop a request before its next batch."""
        with self._lock:
            if any(request.call == call for request in self._requests):
                self._cancelled.add(call)

    def step(self) -> list[EmbeddingOutput]:
        """Embed one batch of the request whose turn it is. Only one thread may call it."""
        with self._lock:
            outputs = self._drop_cancelled()
            if not self._requests:
                return outputs
            request = self._requests[0]
        indices = request.batches.popleft()
        batch = [request.texts[index] for index in indices]
        vectors = self._runner.run(batch)
        with self._lock:
            request.rows |= zip(indices, vectors, strict=True)
            self.counters.steps += 1
            self.counters.prompt_tokens += sum(len(ids) for ids in batch)
            self._requests.rotate(-1)
            if not request.batches:
                self._requests.remove(request)
                self._cancelled.discard(request.call)
                self.counters.finished += 1
                outputs.append(EmbeddingOutput(request.call, _embedded(request)))
        return outputs

    def fail_all(self) -> list[EmbeddingOutput]:
        """Drop every request: a step failed."""
        with self._lock:
            dropped = [
                EmbeddingOutput(r.call, EmbeddingFailed(cancelled=False)) for r in self._requests
            ]
            self._requests.clear()
            self._cancelled.clear()
        return dropped

    def _drop_cancelled(self) -> list[EmbeddingOutput]:
        dropped = [request for request in self._requests if request.call in self._cancelled]
        for request in dropped:
            self._requests.remove(request)
        self._cancelled.clear()
        self.counters.cancelled += len(dropped)
        return [EmbeddingOutput(r.call, EmbeddingFailed(cancelled=True)) for r in dropped]


def batches(texts: Sequence[Sequence[int]], token_budget: int) -> deque[list[int]]:
    """Indices of `texts` in batches, longest first, of at most `token_budget` padded tokens."""
    groups: deque[list[int]] = deque()
    width = 0
    for index in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        if not groups or (len(groups[-1]) + 1) * width > token_budget:
            groups.append([])
            width = len(texts[index])
        groups[-1].append(index)
    return groups


def _embedded(request: _Request) -> Embedded:
    return Embedded(np.stack([request.rows[i] for i in range(len(request.texts))]))
