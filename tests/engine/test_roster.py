"""Whoever enters the roster leaves it once, for the reason that it left for."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tokenizers import Tokenizer as NativeTokenizer
from tokenizers.models import WordLevel

from appliance.bundle.specs import Prompting
from appliance.engine.generation import Generation
from appliance.engine.guessing.speculation import ModelRate
from appliance.engine.output import FinishReason
from appliance.engine.roster import Roster
from appliance.engine.running import Running
from appliance.engine.sampling import SamplingParams
from appliance.engine.tokenizer import Tokenizer

_WORDS = Tokenizer(NativeTokenizer(WordLevel({"a": 0})).to_str().encode())
_PROMPTING = Prompting(template="t")


def _group(call: int, count: int) -> list[Running]:
    asked = Generation(call, [0], SamplingParams(), count)
    return [Running.begin(asked, index, _WORDS, _PROMPTING, ModelRate()) for index in range(count)]


class Entering(RuleBasedStateMachine):
    """Calls come, end, are cancelled and run out of time, beside books of sets."""

    def __init__(self) -> None:
        super().__init__()
        self.roster = Roster()
        self.now = 0
        self.calls = 0
        self.there: dict[int, set[Running]] = {}
        self.deadlines: dict[int, int] = {}
        self.cancelled: set[int] = set()

    @rule(count=st.integers(1, 3), seconds=st.none() | st.integers(0, 4))
    def add(self, count: int, seconds: int | None) -> None:
        self.calls += 1
        group = _group(self.calls, count)
        deadline = None if seconds is None else self.now + seconds
        self.roster.add(self.calls, group, deadline)
        self.there[self.calls] = set(group)
        if deadline is not None:
            self.deadlines[self.calls] = deadline

    @rule(pick=st.integers(0, 50))
    def end_one(self, pick: int) -> None:
        everybody = [one for group in self.there.values() for one in group]
        if everybody:
            self.roster.remove(one := everybody[pick % len(everybody)])
            self._gone(one)

    @rule(call=st.integers(1, 12))
    def cancel(self, call: int) -> None:
        self.roster.cancel(call)
        if self.there.get(call):
            self.cancelled.add(call)

    @rule(seconds=st.integers(0, 3))
    def leave(self, seconds: int) -> None:
        self.now += seconds
        expected = {
            one: FinishReason.CANCELLED if call in self.cancelled else FinishReason.DEADLINE
            for call, group in self.there.items()
            if call in self.cancelled or self.deadlines.get(call, self.now + 1) <= self.now
            for one in group
        }
        left = {}
        for one, reason in self.roster.leaving(self.now):
            assert one not in left, "it leaves once"
            left[one] = reason
            self.roster.remove(one)
            self._gone(one)
        assert left == expected
        self.cancelled.clear()

    @invariant()
    def everybody_is_found_by_its_sequence(self) -> None:
        everybody = {one.sequence: one for group in self.there.values() for one in group}
        assert dict(self.roster) == everybody
        assert self.roster.alone == (len(everybody) == 1)
        self.roster.check_integrity()

    def _gone(self, one: Running) -> None:
        self.there[one.call].remove(one)


TestEntering = Entering.TestCase
