"""What a decoder is once it is opened, on whatever computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from appliance.config import EngineSettings
from appliance.engine.adapters.adapters import AdaptedDecoder
from appliance.engine.cache_budget import SNAPSHOTS, CacheShape
from appliance.engine.guessing.guesser import Guesser
from appliance.engine.runner import Runner


@dataclass(frozen=True, slots=True)
class OpenedDecoder:
    """A decoder ready to run.

    Attributes:
        runner: computes plans.
        shape: of the cache.
        settings: the engine's, with the numbers that suit what computes.
        recorded: steps are replayed, not started kernel by kernel; False on the processor.
        close: gives back what the cache took.
        adapted: what it can do with adapters; None where its graph has no room for them.
        gathered: it wants the decoding sequences in the first slots.
        draft: the small model or the head that guesses for it; None where there is none, or it is
            not used.
    """

    runner: Runner
    shape: CacheShape
    settings: EngineSettings
    recorded: bool
    close: Callable[[], None]
    adapted: AdaptedDecoder | None = None
    gathered: bool = True
    draft: Guesser | None = None

    @property
    def snapshots(self) -> int:
        """Of a running state, that it sets aside for each slot; 0: it has none."""
        return SNAPSHOTS if self.shape.state_bytes else 0
