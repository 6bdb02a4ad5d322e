"""The thread that steps one model's engine while there is work, and sleeps while there is none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from appliance.engine_daemon.faults import describe

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What can be stepped."""

    @property
    def has_work(self) -> bool: ...
    def step(self) -> Sequence[Any]: ...
    def fail_all(self) -> Sequence[Any]: ...


class Stepper:
    """Owns the thread. `deliver` gets every step's outputs, in that thread, and `awake` is called
    there whenever it has woken up."""

    def __init__(
        self,
        engine: Engine,
        deliver: Callable[[Sequence[Any]], None],
        awake: Callable[[], None],
        *,
        name: str,
    ) -> None:
        self._engine = engine
        self._deliver = deliver
        self._tell_awake = awake
        self._name = name
        self.sleeping = False
        """Whether the thread waits to be woken. From any thread."""
        self._awake = threading.Event()
        self._stopping = False
        self._began: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"steps of {name}", daemon=True)
        self._thread.start()

    @property
    def has_work(self) -> bool:
        """Whether there is something to compute. From any thread."""
        return self._engine.has_work

    def wake(self) -> None:
        """There may be work. From any thread."""
        self._awake.set()

    @property
    def step_seconds(self) -> float:
        """How long the step under way has lasted; 0 if there is none. From any thread."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def stop(self) -> None:
        """End the thread after the step that is under way. Blocks."""
        self._stopping = True
        self._awake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self.sleeping = True
            self._awake.wait()
            self._awake.clear()
            self.sleeping = False
            self._tell_awake()
            while self._engine.has_work and not self._stopping:
                self._deliver(self._step())

    def _step(self) -> Sequence[Any]:
        self._began = time.monotonic()
        try:
            return self._engine.step()
        except Exception as error:
            _log.error("%s: a step failed, its calls are ended: %s", self._name, describe(error))
            return self._engine.fail_all()
        finally:
            self._began = None
