"""What computes a plan: every backend's runner is one."""

from __future__ import annotations

from typing import Protocol

from appliance.engine.device.logits import DeviceLogits
from appliance.engine.slot_pool import Array
from appliance.scheduler import Plan

Logits = Array | DeviceLogits


class Runner(Protocol):
    """Computes a plan: logits [sum(plan.rows), vocab], those of each of `plan.sampled` in turn."""

    def run(self, plan: Plan) -> Logits: ...

    def most_drafted(self, sequences: int) -> int:
        """Drafted tokens that a decode batch of so many can take of each; 0: none."""
        ...

    def interrupt(self) -> None:
        """Give up the piece that is under way, if that can be: `run` raises Interrupted.

        From any thread. What a plan's moves have done stays done.
        """
        ...
