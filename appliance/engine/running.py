"""One sequence of a request while it runs, with everything that belongs to it.

Owns how a request becomes sequences, how one of them is sampled, and when it ends. Refuses to know
the others: what it does depends on its own tokens alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from appliance.bundle.specs import Prompting
from appliance.engine.choosing import Choice, HostRow, Row
from appliance.engine.device.logits import DeviceLogits
from appliance.engine.generation import Generation
from appliance.engine.grammar.constraint import Constraint
from appliance.engine.guessing.drafting import Drafter, PredictionDrafter, PromptLookup
from appliance.engine.guessing.speculation import Guesses, ModelRate
from appliance.engine.output import Finished, FinishReason, OutputReader
from appliance.engine.runner import Logits
from appliance.engine.sampler import Sampled, Sampler
from appliance.engine.sampling import SamplingParams
from appliance.engine.tokenizer import Tokenizer
from appliance.scheduler import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """One sequence: number `index` of `call`."""

    call: int
    index: int
    sequence: Sequence
    sampler: Sampler
    reader: OutputReader
    params: SamplingParams
    guesses: Guesses
    constraint: Constraint | None = None

    @classmethod
    def begin(
        cls,
        generation: Generation,
        index: int,
        tokenizer: Tokenizer,
        prompting: Prompting,
        model: ModelRate,
    ) -> Running:
        """The sequence number `index` of a request. `model`: what is known of the draft model."""
        reader = OutputReader(
            tokenizer,
            generation.params,
            index,
            prompting=prompting if generation.chat else None,
            tools=generation.tools,
            functions=generation.functions,
            continued=generation.continued,
            calls_first=generation.calls_first,
            reasoning=generation.reasoning,
            reasoning_opened=generation.reasoning_opened,
        )
        sequence = sequence_of(generation)
        return cls(
            generation.call,
            index,
            sequence,
            Sampler(generation.params, generation.prompt, index=index),
            reader,
            generation.params,
            Guesses(_drafters(generation, sequence), model),
            _constraint(generation),
        )

    def left(self, capacity: int) -> int:
        """Tokens that a draft may have: with one more the sequence would be at its end.

        capacity: of a slot.
        """
        room, most = capacity - len(self.sequence.tokens), self.params.max_tokens
        return (room if most is None else min(room, most - self.sequence.generated)) - 1

    def choice(self) -> Choice | None:
        """How its next token is chosen; None if no logits are needed for it.

        Waits for what its grammar admits.
        """
        constraint = self.constraint
        if constraint is None:
            return self.sampler.choice()
        if constraint.only() is None:
            return self.sampler.choice(constraint.allowed())
        return None if self.params.logprobs is None else Choice(self.params)

    def sample(self, logits: Logits, row: int) -> Sampled:
        """Its next token, from a row of a step's logits."""
        if isinstance(logits, DeviceLogits):
            # Weighed by its choice, with those of all others.
            found: Row | None = logits.row(row)
        else:
            choice = self.choice()
            found = None if choice is None else HostRow(logits[row], choice)
        only = None if self.constraint is None else self.constraint.only()
        if only is not None:
            return self.sampler.take_forced(only, found)
        assert found is not None, "only a forced token needs no logits"
        return self.sampler.choose(found)

    def end_reason(self, token_id: int, *, room: bool) -> FinishReason | None:
        """Why it ends with `token_id`, if it does. `room`: its slot holds another one."""
        constraint = self.constraint
        if token_id in self.params.end_ids or self.reader.stop:
            return FinishReason.STOP
        if constraint is not None:
            if constraint.ends_with(token_id):
                return FinishReason.STOP
            constraint.advance(token_id)
            if constraint.complete:
                return FinishReason.STOP
            if constraint.broken:
                return FinishReason.ERROR
        if not room or self.sequence.generated == self.params.max_tokens:
            return FinishReason.LENGTH
        return None

    def finished(self, reason: FinishReason) -> Finished:
        """Its end, with its counts."""
        return Finished(
            self.index,
            reason,
            # A sequence that was cancelled early may not have had all of its prompt computed.
            prompt_tokens=self.sequence.prompt_reached,
            generated_tokens=self.reader.tokens,
            reasoning_tokens=self.reader.reasoning_tokens,
            stop=self.reader.stop,
            cached_tokens=self.sequence.cached,
            accepted_prediction_tokens=self.guesses.accepted,
            rejected_prediction_tokens=self.guesses.rejected,
        )


def sequence_of(generation: Generation) -> Sequence:
    """What scheduling needs to know of each sequence of a request."""
    sight, prompt = generation.sight, generation.prompt
    return Sequence(
        prompt if sight is None else sight.keyed(prompt),
        namespace=_namespace(generation),
        adapter=generation.adapter,
        caller=generation.caller,
        priority=generation.priority,
        share=generation.share,
        opening=generation.opening,
        beside=sight,
    )


def _namespace(generation: Generation) -> Hashable:
    """Who shares keys and values: an adapter computes others than the model alone."""
    if not (generation.cache_namespace and generation.adapter):
        return generation.cache_namespace
    return generation.adapter, generation.cache_namespace


def _constraint(generation: Generation) -> Constraint | None:
    grammar = generation.grammar
    if grammar is None:
        return None
    # Without the model's end tokens among its own, a request has asked to ignore them.
    return grammar.begin(ignore_end=not grammar.end_ids <= generation.params.end_ids)


def _drafters(generation: Generation, sequence: Sequence) -> list[Drafter]:
    """Who guesses for `sequence`, the most reliable first."""
    lookup = PromptLookup(sequence.tokens)
    if generation.prediction is None:
        return [lookup]
    predicted = PredictionDrafter(generation.prediction, sequence.tokens, sequence.prompt_length)
    return [predicted, lookup]
