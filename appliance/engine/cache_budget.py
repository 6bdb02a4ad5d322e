"""How much key-value cache each model gets, to the byte.

Owns the one budget that all models share. A model may take half of what is free, so that the
next version of it can be loaded beside it and swapped in without an interruption.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from appliance.bundle.specs import DecoderSpec, RecurrentSpec
from appliance.config import EngineSettings
from appliance.engine.machine import memory_bytes
from appliance.errors import CapacityError

_PREFERRED_TOKENS = 4096
"""A slot gets at least this many tokens (or the model's context) before there is a second one."""
_LEAST_TOKENS = 64
"""Below this a slot is of no use to anybody."""
SNAPSHOTS = 2
"""Of the running state of each slot, set aside: where its prompt ends, and where it forks."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """`slots` sequences of `capacity` tokens each; `token_bytes` for one token, all layers.

    `state_bytes`: of one running state, in models that have such layers.
    """

    slots: int
    capacity: int
    token_bytes: int
    state_bytes: int = 0

    @property
    def slot_bytes(self) -> int:
        return self.capacity * self.token_bytes

    @property
    def states(self) -> int:
        """Running states: each slot's own and its snapshots, and one that is being computed."""
        return self.slots * (1 + SNAPSHOTS) + 1 if self.state_bytes else 0

    @property
    def total_bytes(self) -> int:
        return self.slots * self.slot_bytes + self.states * self.state_bytes


def token_bytes(decoder: DecoderSpec, item: int | None = None) -> int:
    """Bytes of one token's keys and values over all layers.

    `item` is the size of a number, if it is not the one of the graphs for the processor.
    """
    if item is None:
        item = 1 if decoder.cache == "int8" else 4
    return 2 * item * sum(heads.numbers for heads in decoder.layer_heads)


def state_bytes(decoder: DecoderSpec) -> int:
    """Bytes of a sequence's running state over all layers that have one; 0: none has."""
    own = decoder.recurrent
    return own.nbytes if isinstance(own, RecurrentSpec) else 0


def fit(
    decoder: DecoderSpec, settings: EngineSettings, available: int, each: int | None = None
) -> CacheShape:
    """The largest useful cache within `available` bytes, of which a token takes `each`.

    Full context for all sequences if that fits. Else fewer sequences, down to as many as can
    have 4,096 tokens each; if even one cannot, a shorter context. Raises CapacityError if not
    even 64 tokens fit.
    """
    assert settings.max_sequences > 0, "sized for what computes"
    context = min(decoder.context_length, settings.max_context or decoder.context_length)
    each = token_bytes(decoder) if each is None else each
    preferred = min(context, _PREFERRED_TOKENS)
    state = state_bytes(decoder)
    rest, beside = available - state, state * (1 + SNAPSHOTS)
    slots = max(1, min(settings.max_sequences, rest // (preferred * each + beside)))
    capacity = min(context, (rest // slots - beside) // each)
    if capacity < min(context, _LEAST_TOKENS):
        raise CapacityError(
            f"the key-value cache has {available} bytes left; one token of this model needs {each}",
            hint="serve fewer models (`appliance models remove NAME VERSION --active`), or raise "
            "engine.cache_bytes",
            code="cache_full",
        )
    return CacheShape(slots, capacity, each, state)


class CacheBudget:
    """The bytes that all models' caches share. Thread-safe."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._taken = 0
        self._lock = threading.Lock()

    @classmethod
    def from_settings(cls, settings: EngineSettings) -> CacheBudget:
        """`engine.cache_bytes`, or a quarter of the machine's memory."""
        return cls(settings.cache_bytes or memory_bytes() // 4)

    @property
    def free(self) -> int:
        return self.total - self._taken

    def take(
        self, decoder: DecoderSpec, settings: EngineSettings, draft: DecoderSpec | None = None
    ) -> CacheShape:
        """Reserve a cache for a model, and for its draft model or head as many slots as long.

        A token's bytes are those of both. Raises CapacityError.
        """
        each = token_bytes(decoder) + (token_bytes(draft) if draft is not None else 0)
        with self._lock:
            shape = fit(decoder, settings, self.free // 2, each)
            self._taken += shape.total_bytes
            return shape

    def share(self, settings: EngineSettings) -> int | None:
        """What a model on a device may take of `engine.cache_bytes`; None if that is not set."""
        return self.free // 2 if settings.cache_bytes else None

    def book(self, shape: CacheShape, settings: EngineSettings) -> Callable[[], None]:
        """Count a cache on a device, if `engine.cache_bytes` bounds all of them; ends with the call
        of what is returned. Raises CapacityError if others have taken it meanwhile.
        """
        if not settings.cache_bytes:
            return lambda: None
        with self._lock:
            if shape.total_bytes > self.free:
                raise CapacityError(
                    f"the key-value cache has {self.free} bytes left",
                    hint="load the model again when the others are loaded",
                    code="cache_full",
                )
            self._taken += shape.total_bytes
        return partial(self.give_back, shape)

    def give_back(self, shape: CacheShape) -> None:
        with self._lock:
            self._taken -= shape.total_bytes
            assert self._taken >= 0
