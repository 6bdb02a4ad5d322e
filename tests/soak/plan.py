"""Which fault strikes when: a shuffled deck, dealt again and again.

Owns what makes the order possible: the endpoint is started anew only in the first third and the
engine only in the first half, so that growth can be seen in the rest; no daemon more often than its
supervisor allows; and nothing that needs a daemon while another fault still has it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from installer.supervise import MAX_STARTS, MAX_STARTS_SECONDS
from tests.soak.faults import Fault

LAST_START = {"shim": 1 / 3, "engine": 1 / 2}
"""Share of the time after which a daemon is left in peace."""


@dataclass(frozen=True, slots=True)
class Strike:
    at: float
    """Seconds from the start of the load."""
    fault: Fault


def plan(
    catalogue: Sequence[Fault], chance: random.Random, *, seconds: float, every: float
) -> list[Strike]:
    """A strike each `every` seconds; the last one leaves as long again for getting well."""
    made: list[Strike] = []
    deck: list[Fault] = []
    at = every
    while at <= seconds - every:
        if len(deck) < len(catalogue):
            deck += chance.sample(catalogue, len(catalogue))
        fault = next((f for f in deck if _possible(f, at, made, seconds)), None)
        if fault is not None:
            deck.remove(fault)
            made.append(Strike(at, fault))
        deck = [f for f in deck if _ever(f, at, seconds)]
        at += every
    return made


def _ever(fault: Fault, at: float, seconds: float) -> bool:
    """Whether its time is not over."""
    return all(at < LAST_START[daemon] * seconds - fault.takes for daemon in fault.starts)


def _possible(fault: Fault, at: float, made: Sequence[Strike], seconds: float) -> bool:
    if not _ever(fault, at, seconds):
        return False
    if any(s.fault.has == fault.has and at < s.at + s.fault.takes for s in made if fault.has):
        return False
    for daemon, starts in fault.starts.items():
        recent = [s for s in made if at - s.at - s.fault.takes < MAX_STARTS_SECONDS]
        begun = sum(s.fault.starts.get(daemon, 0) for s in recent)
        begun += at < MAX_STARTS_SECONDS  # the first start
        if begun + starts >= MAX_STARTS:
            return False
    return True
