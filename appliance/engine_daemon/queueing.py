"""Handing what a thread prepared to the engine, unless nobody waits for it any more.

Owns that this is decided once: whoever leaves knows whether the engine has it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from appliance.engine.generation import Generation


class Queueing:
    """Entered by whoever waits; `queue` is called by the thread, or by who waits."""

    def __init__(self, add: Callable[[Generation], None]) -> None:
        self._add = add
        self._lock = threading.Lock()
        self._left = False
        self.done = False
        """The engine has it. Settled when the context is left."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._left = True

    def ended(self) -> bool:
        """Whether nobody waits any more. From any thread."""
        return self._left

    def queue(self, generation: Generation) -> None:
        """Hand it over if somebody waits. Raises what the engine's queue raises."""
        with self._lock:
            if not self._left:
                self._add(generation)
                self.done = True
