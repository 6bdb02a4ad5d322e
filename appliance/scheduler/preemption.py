"""Who gives its slot when all are taken and somebody's turn cannot wait.

Two rules, both bounded: no sequence gives way more than twice, nor one that got its slot by age
(see FairQueue), so everybody gets on.

1. A sequence of a higher priority takes the slot of the lowest that decodes.
2. A caller with nothing running takes a slot of a caller of the same priority that runs more than
   its equal part: a first request does not wait for the end of somebody's two hundred.

The one with the fewest computed tokens goes, since it has the least to compute again. What runs
within a share (see Shares) gives way to its owner's higher priorities alone.
"""

from __future__ import annotations

from collections import Counter

from appliance.scheduler.sequence import Sequence
from appliance.scheduler.slots import SlotTable

MOST_PREEMPTIONS = 2


def victim_for(sequence: Sequence, slots: SlotTable) -> Sequence | None:
    """The decoding sequence that gives its slot to `sequence`; None: it has to wait."""
    willing = [
        other
        for other in slots.decoding
        if other.preemptions < MOST_PREEMPTIONS and not other.keeps_slot
        if not other.reserved or other.owner == sequence.owner
    ]
    lower = [other for other in willing if other.priority < sequence.priority]
    if lower:
        return min(lower, key=lambda other: (other.priority, other.computed))
    callers = Counter(other.caller for other in slots.running)
    if sequence.caller in callers:
        return None
    part = slots.count // (len(callers) + 1)
    rich = [
        other
        for other in willing
        if other.priority == sequence.priority and callers[other.caller] > max(part, 1)
    ]
    return min(rich, key=lambda other: (-callers[other.caller], other.computed), default=None)
