"""The engine of one embedding model or reranker: step() computes one batch of similar length.

Owns the queue of requests and takes turns between them, so that a large one does not keep
small ones waiting. What a text is, token ids or a pair, only the encoder knows. Callers add and
cancel from any thread; one thread calls step().
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from appliance.engine.encoder_runner import Vectors
from appliance.errors import CapacityError

MOST_PADDING = 1 / 8
"""Share of a batch that may be padding (docs/decisions/0191-little-padding.md)."""

Text = TypeVar("Text", bound=Sized)
T = TypeVar("T", bound=Sized, contravariant=True)


@dataclass(frozen=True, slots=True)
class Embedded:
    """All of a request's results, [texts, ...], in the order of the texts, of `tokens` tokens."""

    vectors: Vectors
    tokens: int


@dataclass(frozen=True, slots=True)
class EmbeddingFailed:
    """The request was dropped, cancelled or by a failed step; `tokens` had been computed."""

    cancelled: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """What became of a call's request."""

    call: int
    event: Embedded | EmbeddingFailed


@dataclass(slots=True)
class EmbeddingCounters:
    steps: int = 0
    prompt_tokens: int = 0
    finished: int = 0
    cancelled: int = 0


class Encoder(Protocol[T]):
    """Computes a batch of texts: [len(batch), ...]."""

    def run(self, batch: Sequence[T]) -> Vectors: ...


@dataclass(slots=True, eq=False)
class _Request(Generic[Text]):
    call: int
    texts: Sequence[Text]
    batches: deque[list[int]]
    """Indices into `texts`, longest texts first."""
    rows: dict[int, Vectors] = field(default_factory=dict)
    tokens: int = 0
    """Computed so far."""

    def embedded(self) -> Embedded:
        return Embedded(np.stack([self.rows[i] for i in range(len(self.texts))]), self.tokens)

    def failed(self, *, cancelled: bool) -> EmbeddingOutput:
        return EmbeddingOutput(self.call, EmbeddingFailed(cancelled, self.tokens))


class EmbeddingEngine(Generic[Text]):
    """Batches by length over one encoder.

    Args:
        token_budget: tokens of a batch at most, padding included; one text always fits.
        max_waiting: requests that may wait beside the one whose turn it is.
    """

    def __init__(self, runner: Encoder[Text], *, token_budget: int, max_waiting: int) -> None:
        self._runner = runner
        self._token_budget = token_budget
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._requests: deque[_Request[Text]] = deque()
        self._cancelled: set[int] = set()
        self.counters = EmbeddingCounters()

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._requests)

    def add(self, call: int, texts: Sequence[Text]) -> None:
        """Queue a request of texts, none empty. Raises CapacityError."""
        assert texts
        assert all(map(len, texts))
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
            tokens = sum(len(text) for text in batch)
            request.tokens += tokens
            self.counters.prompt_tokens += tokens
            self._requests.rotate(-1)
            if not request.batches:
                self._requests.remove(request)
                self._cancelled.discard(request.call)
                self.counters.finished += 1
                outputs.append(EmbeddingOutput(request.call, request.embedded()))
        return outputs

    def fail_all(self) -> list[EmbeddingOutput]:
        """Drop every request: a step failed."""
        with self._lock:
            dropped = [request.failed(cancelled=False) for request in self._requests]
            self._requests.clear()
            self._cancelled.clear()
        return dropped

    def _drop_cancelled(self) -> list[EmbeddingOutput]:
        dropped = [request for request in self._requests if request.call in self._cancelled]
        for request in dropped:
            self._requests.remove(request)
        self._cancelled.clear()
        self.counters.cancelled += len(dropped)
        return [request.failed(cancelled=True) for request in dropped]


def batches(texts: Sequence[Sized], token_budget: int) -> deque[list[int]]:
    """Indices of `texts` in batches, longest first, of at most `token_budget` padded tokens.

    A batch ends before more than MOST_PADDING of it would be padding.
    """
    groups: deque[list[int]] = deque()
    width = tokens = 0
    for index in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        length = len(texts[index])
        padded = (len(groups[-1]) + 1) * width if groups else 0
        padding = padded - tokens - length
        if not groups or padded > token_budget or padding > MOST_PADDING * padded:
            groups.append([])
            width, tokens = length, 0
        groups[-1].append(index)
        tokens += length
    return groups
