"""What an engine has done since it started: the figures behind Stats and /metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.engine.output import FinishReason
from appliance.scheduler import Plan, PrefillChunk, Sequence


@dataclass(slots=True)
class ClassCounters:
    """Some of the same sums, of the sequences with a share or of those without."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class Counters:
    """Sums over all steps.

    Attributes:
        prompt_tokens: prompt tokens computed, each once.
        recomputed_tokens: tokens computed again, after a preemption.
        prefix_queries: prompt tokens of the sequences that got a slot.
        cached_tokens: those of them that came from the prefix cache.
        drafted_tokens: guesses that were verified.
        accepted_tokens: those of them that were right.
        forced_tokens: tokens that a grammar forced, computed in one step with those before them.
        finished: sequences that ended, but for the next two.
        cancelled: sequences whose caller went away.
        expired: sequences that met their deadline.
        preemptions: sequences that gave their slot to another and waited again.
        shared, dedicated: by class of capacity.
    """

    steps: int = 0
    prompt_tokens: int = 0
    recomputed_tokens: int = 0
    prefix_queries: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    forced_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    preemptions: int = 0
    shared: ClassCounters = field(default_factory=ClassCounters)
    dedicated: ClassCounters = field(default_factory=ClassCounters)

    def sampled(self, sequence: Sequence) -> None:
        """`sequence` got one more token."""
        self.generated_tokens += 1
        self._of(sequence).generated_tokens += 1

    def ended(self, reason: FinishReason) -> None:
        """A sequence ended so."""
        if reason is FinishReason.CANCELLED:
            self.cancelled += 1
        elif reason is FinishReason.DEADLINE:
            self.expired += 1
        else:
            self.finished += 1

    def add(self, plan: Plan, forced: int = 0) -> None:
        """Count a step that was computed and is not committed yet.

        `forced` of its drafted tokens are no guesses.
        """
        self.steps += 1
        self.drafted_tokens += sum(map(len, plan.drafts)) - forced
        self.forced_tokens += forced
        self.preemptions += len(plan.preempted)
        for sequence in plan.preempted:
            self._of(sequence).preemptions += 1
        for sequence in plan.admitted:
            self.prefix_queries += sequence.prompt_length
            self.cached_tokens += sequence.cached
        for chunk in plan.prefills:
            self._add_chunk(chunk)

    def _add_chunk(self, chunk: PrefillChunk) -> None:
        end, sequence = chunk.start + chunk.count, chunk.sequence
        again = max(0, min(end, sequence.reached) - chunk.start)
        fresh = max(0, min(end, sequence.prompt_length) - chunk.start - again)
        self.recomputed_tokens += again
        self.prompt_tokens += fresh
        self._of(sequence).prompt_tokens += fresh

    def _of(self, sequence: Sequence) -> ClassCounters:
        return self.shared if sequence.share is None else self.dedicated
