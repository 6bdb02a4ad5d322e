"""The adapters that a loaded model has beside itself: added and removed while it serves.

Owns the order of that: everything is checked and read first, then the runner takes the new bank
up between two steps. The graphs with adapters are opened with the first one; a model without
adapters pays nothing. Refuses more than the setting allows, and models on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from appliance.bundle.adapter import check_base
from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import Adapted
from appliance.engine.adapters.bank import AdapterBank
from appliance.engine.adapters.weights import read_adapter
from appliance.engine.llm_engine import LLMEngine
from appliance.errors import CapacityError, UnsupportedError
from appliance.model_store import StoredBundle

Adopt = Callable[[AdapterBank], None]
"""Compute with these adapters from the next run on; not while one is under way."""


@dataclass(frozen=True, slots=True)
class AdaptedDecoder:
    """What a model's runner can do with adapters.

    Attributes:
        open: opens the graphs. Raises UnsupportedError.
    """

    open: Callable[[], Adopt]


class Adapters:
    """The adapters of the model `base`, which `engine` runs. Thread-safe.

    Args:
        decoder: None where what computes has no adapters.
        most: adapters at once.
    """

    def __init__(
        self, base: Manifest, engine: LLMEngine, decoder: AdaptedDecoder | None, most: int
    ) -> None:
        self._base = base
        self._engine = engine
        self._decoder = decoder
        self._most = most
        self._adopt: Adopt | None = None
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
            if self._decoder is None:
                raise UnsupportedError(
                    f"{self._base.name} is computed by the GPU, which has no adapters yet",
                    hint="serve this base on a node without a GPU to use its adapters",
                    code="adapters_need_processor",
                )
            if len(self.digests) >= self._most:
                raise CapacityError(
                    f"{self._base.name} has {self._most} adapters loaded, as many as may be",
                    hint="remove one, or raise engine.max_adapters",
                    code="adapters_full",
                )
            weights = read_adapter(bundle)
            adopt = self._adopt = self._adopt or self._decoder.open()
            self._change(adopt, (self._bank or self._empty()).adding(weights))

    def remove(self, digest: str) -> None:
        """Unload an adapter, of which no sequence may be left; unknown ones are left alone."""
        with self._lock:
            if self._bank is not None and self._adopt is not None and digest in self.digests:
                self._change(self._adopt, self._bank.without(digest))

    def _change(self, adopt: Adopt, bank: AdapterBank) -> None:
        self._engine.between_steps(lambda: adopt(bank))
        self._bank = bank

    def _empty(self) -> AdapterBank:
        adapted, decoder = self._base.graph.adapted, self._base.decoder
        assert isinstance(adapted, Adapted), "the base was checked"
        assert decoder is not None, "the base was checked"
        return AdapterBank(decoder.layers, adapted.targets)
