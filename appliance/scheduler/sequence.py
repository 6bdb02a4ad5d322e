"""One sequence: a prompt and what was generated for it, as far as scheduling needs to know.

Owns the token ids and how many of them are in the cache. Refuses to know text, sampling or
where its slot's memory is.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable
from dataclasses import dataclass


class Phase(enum.Enum):
    """Where a sequence stands; it moves down this list, and back to the top if preempted."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Share:
    """What is kept for `owner`: so many percent of the slots and of each step's prompt tokens."""

    owner: str
    percent: int


class Sequence:
    """Prompt plus generated tokens.

    tokens:   p p p p p p p p g g g
              |-- computed --|          keys and values of these are in slot `slot`
              |--- prompt ---|

    In decode exactly one token, the last sampled one, is not computed yet.

    Attributes:
        tokens: prompt and generated ids; the list only ever grows.
        prompt_length: how many of `tokens` are the prompt; at least 1.
        computed: how many of `tokens` have their keys and values in its slot now.
        reached: the most that `computed` ever was; less of it may be in the cache after a
            preemption, but it is computed work all the same.
        cached: how many prompt tokens it found in the prefix cache when it first got a slot.
        namespace: it shares keys and values with sequences of the same namespace only. Until it
            is queued "" means none; the queue then gives its request one of its own.
        adapter: digest of the adapter that it is computed with; "": the model alone. The namespace
            of whoever queues it must tell adapters apart, too.
        chain: hashes of its whole blocks, each over everything before; see PrefixIndex.
        opening: so many of its first tokens others are likely to begin with, too; 0: not known.
        beside: what computing it takes beside its tokens; nothing to the scheduler.
        caller: whom its tokens count for when callers take turns.
        priority: the higher is served first.
        share: that it is computed with; None: it shares what is left with all others.
        reserved: it runs within the share; see Shares.
        charged: its prompt moved its caller's clock when it got its slot.
        preemptions: how often it had to give its slot to another.
        keeps_slot: it got its slot by age, before higher priorities, and is not preempted.
        slot: cache slot while running, else None.
        arrival: rank in the order of arrival, given by the scheduler.
        turn: its caller's clock when it got its slot; see FairQueue.
    """

    __slots__ = (
        "adapter",
        "arrival",
        "beside",
        "cached",
        "caller",
        "chain",
        "charged",
        "computed",
        "keeps_slot",
        "namespace",
        "opening",
        "phase",
        "preemptions",
        "priority",
        "prompt_length",
        "reached",
        "reserved",
        "share",
        "slot",
        "tokens",
        "turn",
    )

    def __init__(
        self,
        prompt: Iterable[int],
        *,
        namespace: Hashable = "",
        caller: str = "",
        priority: int = 0,
        share: Share | None = None,
        adapter: str = "",
        opening: int = 0,
        beside: object = None,
    ) -> None:
        self.tokens = list(prompt)
        assert self.tokens, "an empty prompt has no last position to sample from"
        self.prompt_length = len(self.tokens)
        self.computed = 0
        self.reached = 0
        self.cached = 0
        self.namespace = namespace
        self.adapter = adapter
        self.opening = opening
        self.caller = caller
        self.priority = priority
        self.share = share
        self.reserved = False
        self.charged = False
        self.beside = beside
        self.preemptions = 0
        self.keeps_slot = False
        self.chain: list[int] = []
        self.phase = Phase.WAITING
        self.slot: int | None = None
        self.arrival = -1
        self.turn = 0

    @property
    def owner(self) -> str:
        """Of its share; "" if it has none."""
        return self.share.owner if self.share is not None else ""

    @property
    def generated(self) -> int:
        """Number of tokens sampled so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def uncomputed(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.tokens) - self.computed

    @property
    def prompt_reached(self) -> int:
        """Prompt tokens that were computed for it, or found in the cache."""
        return min(self.reached, self.prompt_length)

    @property
    def running(self) -> bool:
        return self.phase in (Phase.PREFILL, Phase.DECODE)
