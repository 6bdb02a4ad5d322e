"""The adapters that a loaded model has beside itself: added and removed while it serves.

Owns the order of that: everything is checked and read first, then the runners take the new bank
up between two steps; on a node with several GPUs there is one on each. The graphs with adapters are
opened with the first one; on the processor a model without adapters pays nothing. Refuses more than
the setting allows, and models whose graph for the GPU has no room.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from appliance.bundle.adapter import check_base
from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import Adapted
from appliance.engine.adapters.bank import AdapterBank
from appliance.engine.adapters.weights import read_adapter
from appliance.engine.llm_engine import LLMEngine
from appliance.errors import CapacityError, UnsupportedError
from appliance.model_store import StoredBundle


@dataclass(frozen=True, slots=True)
class Ready:
    """Adapters that could compute.

    Attributes:
        adopt: lets them, from the next run on; not to be called while one is under way.
        discard: gives back what they take, instead.
    """

    adopt: Callable[[], None]
    discard: Callable[[], None] = lambda: None


Prepare = Callable[[AdapterBank], Ready]
"""Makes adapters ready for one engine. Raises CapacityError."""


@dataclass(frozen=True, slots=True)
class AdaptedDecoder:
    """What a model's runner can do with adapters.

    Attributes:
        open: opens the graphs. Raises UnsupportedError.
    """

    open: Callable[[], Prepare]


class Adapters:
    """The adapters of the model `base`. Thread-safe.

    Args:
        engines: that run it, each with what its runner can do; None where that has no adapters.
        most: adapters at once.
    """

    def __init__(
        self,
        base: Manifest,
        engines: Sequence[tuple[LLMEngine, AdaptedDecoder | None]],
        most: int,
    ) -> None:
        self._base = base
        self._engines = engines
        self._most = most
        self._opened: list[tuple[LLMEngine, Prepare]] | None = None
        self._bank: AdapterBank | None = None
        self._lock = threading.Lock()

    @property
    def digests(self) -> frozenset[str]:
        """Of the adapters that are loaded."""
        return frozenset() if self._bank is None else self._bank.digests

    def add(self, bundle: StoredBundle) -> None:
        """Load an adapter; at once if it is loaded. Takes as long as reading it.

        Raises ConflictError, UnsupportedError or LayoutError if it is not for this model,
        CapacityError if there are as many as may be, and what reading it raises.
        """
        with self._lock:
            check_base(bundle.manifest, self._base)
            if bundle.digest in self.digests:
                return
            if len(self.digests) >= self._most:
                raise CapacityError(
                    f"{self._base.name} has {self._most} adapters loaded, as many as may be",
                    hint="remove one, or raise engine.max_adapters",
                    code="adapters_full",
                )
            opened = self._open()
            weights = read_adapter(bundle)
            self._change(opened, (self._bank or self._empty()).adding(weights))

    def remove(self, digest: str) -> None:
        """Unload an adapter, of which no sequence may be left; unknown ones are left alone."""
        with self._lock:
            if self._bank is not None and self._opened is not None and digest in self.digests:
                self._change(self._opened, self._bank.without(digest))

    def _open(self) -> list[tuple[LLMEngine, Prepare]]:
        """The graphs with adapters, opened once. Raises UnsupportedError."""
        if self._opened is None:
            self._opened = [(engine, self._able(d).open()) for engine, d in self._engines]
        return self._opened

    def _able(self, decoder: AdaptedDecoder | None) -> AdaptedDecoder:
        if decoder is None:
            raise UnsupportedError(
                f"{self._base.name} is computed by a graph that has no room for adapters",
                hint="build the base again with --adapters by a release that puts them on a GPU",
                code="adapters_need_processor",
            )
        return decoder

    def _change(self, opened: Sequence[tuple[LLMEngine, Prepare]], bank: AdapterBank) -> None:
        """Ready on every engine before any of them takes it up. Raises CapacityError."""
        with ExitStack() as made:
            ready = []
            for engine, prepare in opened:
                ready.append((engine, prepare(bank)))
                made.callback(ready[-1][1].discard)
            made.pop_all()
        for engine, bank_there in ready:
            engine.between_steps(bank_there.adopt)
        self._bank = bank

    def _empty(self) -> AdapterBank:
        adapted, decoder = self._base.graph.adapted, self._base.decoder
        assert isinstance(adapted, Adapted), "the base was checked"
        assert decoder is not None, "the base was checked"
        return AdapterBank(decoder.layers, adapted.targets)
