"""How many tokens a request has cost so far.

Three sources, the best one wins: the engine's own count of a sequence that finished; after a
cancel, the engine's count of what it had computed (the Settle call); and if the engine is gone,
the tokens that came through while it was there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from appliance.audit.event import Tokens
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.usage import CompletionDetails, PromptDetails, Usage


@dataclass(slots=True)
class Tally:
    """Counts of one prompt and its sequences."""

    prompt_tokens: int
    """Of the whole prompt, as the engine said when it accepted it."""
    received: int = 0
    """Tokens that came from the engine."""
    finished: dict[int, pb.Usage] = field(default_factory=dict)
    """Per sequence that ended."""
    settled: Sequence[pb.Usage] | None = None
    """Per sequence, after a cancel."""

    def tokens(self) -> Tokens:
        """What was computed. The prompt counts once, however many sequences share it."""
        usages = self.settled if self.settled is not None else [*self.finished.values()]
        generated = sum(usage.generated_tokens for usage in usages)
        if self.settled is not None:
            prompt = max((usage.prompt_tokens for usage in usages), default=0)
        else:
            generated = max(generated, self.received)
            prompt = self.prompt_tokens if generated else 0
        return Tokens(
            prompt=prompt,
            # Sequences after the first find the prompt that the first one computed; those that
            # were cancelled before they ran say nothing about it.
            cached=min((usage.cached_tokens for usage in usages if usage.prompt_tokens), default=0),
            generated=generated,
            reasoning=sum(usage.reasoning_tokens for usage in usages),
        )

    def prediction(self) -> tuple[int, int]:
        """Tokens of the caller's prediction that were right, and wrong. Nobody is billed for
        them: the right ones are among the generated, the wrong ones were the engine's wager."""
        usages = self.settled if self.settled is not None else [*self.finished.values()]
        return (
            sum(usage.accepted_prediction_tokens for usage in usages),
            sum(usage.rejected_prediction_tokens for usage in usages),
        )


def total(tallies: Sequence[Tally], *, delivered: int) -> Tokens:
    """The sum over the prompts of one request."""
    parts = [tally.tokens() for tally in tallies]
    return Tokens(
        prompt=sum(part.prompt for part in parts),
        cached=sum(part.cached for part in parts),
        generated=sum(part.generated for part in parts),
        reasoning=sum(part.reasoning for part in parts),
        delivered=delivered,
    )


def usage(tokens: Tokens, tallies: Sequence[Tally] = ()) -> Usage:
    """`tokens` as the API shows them, with what became of predictions."""
    predicted = [tally.prediction() for tally in tallies]
    return Usage(
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.generated,
        total_tokens=tokens.prompt + tokens.generated,
        prompt_tokens_details=PromptDetails(tokens.cached),
        completion_tokens_details=CompletionDetails(
            tokens.reasoning,
            accepted_prediction_tokens=sum(right for right, _ in predicted),
            rejected_prediction_tokens=sum(wrong for _, wrong in predicted),
        ),
    )
