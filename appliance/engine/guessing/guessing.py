"""What a decode step computes beyond one token a sequence: what is forced, and what is guessed.

Owns the order of those who know (grammars, then each sequence's own drafters, then the draft model)
and the room that they have. Whether guesses pay is the rule's (speculation.py), who asks the draft
model is asking.py's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Listing

from appliance.engine.asking import Asking, Candidate
from appliance.engine.guessing.forced import divided, forced_runs
from appliance.engine.guessing.guesser import Guesser
from appliance.engine.guessing.speculation import Speculation
from appliance.engine.runner import Runner
from appliance.engine.running import Running
from appliance.scheduler import Plan, Sequence

Batch = Listing[Running]


class Guessing:
    """One engine's.

    Args:
        draft_tokens: of each sequence at most; 0 has every token computed by itself.
        capacity: of a slot.
        gathered: the runner pads a batch to its longest draft.
        model: the draft model or head, if there is one.
        clock: seconds.
    """

    def __init__(
        self,
        runner: Runner,
        draft_tokens: int,
        *,
        capacity: int,
        token_budget: int,
        gathered: bool,
        model: Guesser | None,
        clock: Callable[[], float],
    ) -> None:
        self._runner = runner
        self._capacity = capacity
        self._token_budget = token_budget
        self._gathered = gathered
        self.speculation = Speculation(draft_tokens)
        self.asking = None if model is None else Asking(model, self.speculation, clock)

    def follow(self, plan: Plan) -> None:
        """The model's slots are about to be moved as `plan` says."""
        if self.asking is not None:
            self.asking.model.follow(plan.moves)

    def observe(self, plan: Plan) -> None:
        """The model has just computed `plan`."""
        if self.asking is not None:
            self.asking.model.observe(plan)

    def forget(self) -> None:
        """What is in the slots cannot be trusted any more."""
        if self.asking is not None:
            self.asking.model.forget()

    def check_integrity(self) -> None:
        """The draft model's slots hold what their sequences said."""
        if self.asking is not None:
            self.asking.model.check_integrity()

    def with_drafts(self, plan: Plan, running: Mapping[Sequence, Running], catch_up: int) -> Plan:
        """`plan` with what must come next of its decoding sequences, and what is worth a try.

        catch_up: tokens that the draft model may compute of what was said before.
        """
        if not (plan.decodes and self.speculation.most and self._takes_drafts(plan)):
            return plan
        if any(sequence.adapter for sequence in plan.decodes):
            # Several of its tokens at once would be rounded otherwise than one by one.
            return plan
        batch = [running[sequence] for sequence in plan.decodes]
        room = [each.left(self._capacity) for each in batch]
        runs = forced_runs([each.constraint for each in batch], room)
        for each, run, most in zip(batch, runs, room, strict=True):
            if run:
                each.guesses.force(run, outright=not self._pads(plan))
            else:
                each.guesses.propose(min(self.speculation.most, most))
        widest = self._widest(plan, batch)
        if self.asking is not None:
            candidates = map(Candidate, plan.decodes, (each.guesses for each in batch), room)
            self.asking.ask(list(candidates), widest, catch_up)
        width = self.speculation.choose([each.guesses for each in batch], widest)
        drafts = [each.guesses.take(width if each.guesses.weighed else 0) for each in batch]
        if not self._pads(plan):
            for place, count in divided(runs, self._spare_rows(plan, drafts)):
                drafts[place] = batch[place].guesses.take(count)
        return dataclasses.replace(plan, drafts=tuple(drafts)) if any(drafts) else plan

    def measured(self, plan: Plan, running: Mapping[Sequence, Running], seconds: float) -> None:
        """`plan` took so long: the rule learns from what it chose itself."""
        chosen = self._pads(plan) or not forced_tokens(plan, running)
        if plan.decodes and not plan.prefills and not plan.moves and chosen:
            width = max(map(len, plan.drafts), default=0)
            self.speculation.measured(len(plan.decodes), width, seconds)

    def _takes_drafts(self, plan: Plan) -> bool:
        """Whether the runner has rows for any; where batches are not padded, for a part of one."""
        return self._runner.most_drafted(len(plan.decodes) if self._pads(plan) else 1) > 0

    def _pads(self, plan: Plan) -> bool:
        """Whether a draft costs others rows, so that the rule has to weigh what is forced, too."""
        return self._gathered and len(plan.decodes) > 1

    def _spare_rows(self, plan: Plan, drafts: Listing[Listing[int]]) -> int:
        """Rows that runner and budget have room for beside `drafts`."""
        rows = self.speculation.most if self._gathered else self._runner.most_drafted(1)
        rows = min(rows, self._token_budget - plan.token_count)
        return max(0, rows - sum(map(len, drafts)))

    def _widest(self, plan: Plan, batch: Batch) -> int:
        """Tokens of each sequence that runner, budget and slots have room for, padded."""
        budget = self._token_budget - plan.token_count
        room = self._capacity - max(len(each.sequence.tokens) for each in batch)
        return min(self._runner.most_drafted(len(batch)), budget // len(batch), room)


def forced_tokens(plan: Plan, running: Mapping[Sequence, Running]) -> int:
    """How many of the drafted tokens are no guesses."""
    drafts = zip(plan.decodes, plan.drafts, strict=False)
    return sum(len(draft) for sequence, draft in drafts if running[sequence].guesses.certain)
