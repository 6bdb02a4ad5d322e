"""Decides what the engine computes next: which sequences run, in which slots, which tokens.

Owns the queues and the ownership of cache slots. Does no I/O, knows no clock, no array and no
accelerator; everything here is plain integers, so that property tests can run it a million steps.
"""

from appliance.scheduler.division import Budget
from appliance.scheduler.plan import Move, Plan, PrefillChunk
from appliance.scheduler.scheduler import Scheduler
from appliance.scheduler.sequence import Phase, Sequence, Share
from appliance.scheduler.shares import MOST_RESERVED, Classes

__all__ = [
    "MOST_RESERVED",
    "Budget",
    "Classes",
    "Move",
    "Phase",
    "Plan",
    "PrefillChunk",
    "Scheduler",
    "Sequence",
    "Share",
]
