"""The engine of one chat model: step() schedules, runs, samples and reads the output back.

Owns the running sequences. Callers add and cancel from any thread; one thread calls step().
The lock is held while sequences change hands, never while the model runs.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from collections.abc import Sequence as Listing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from appliance.bundle.manifest import Prompting
from appliance.engine.counters import Counters
from appliance.engine.device_logits import DeviceLogits
from appliance.engine.drafting import Drafter, Prediction, PredictionDrafter, PromptLookup
from appliance.engine.grammar.constraint import CompiledGrammar, Constraint
from appliance.engine.interruption import Interrupted
from appliance.engine.output import Delta, Finished, FinishReason, OutputReader
from appliance.engine.pace import Pace
from appliance.engine.pieces import Pieces
from appliance.engine.sampler import Sampled, Sampler
from appliance.engine.sampling import SamplingParams
from appliance.engine.slot_pool import Array
from appliance.engine.speculation import Guesses, Speculation
from appliance.engine.tokenizer import Tokenizer
from appliance.engine.vision.sight import Sight
from appliance.errors import RequestError
from appliance.prompting import Tool
from appliance.scheduler import Classes, Plan, Scheduler, Sequence, Share


@dataclass(frozen=True, slots=True)
class Generation:
    """One request: `n` sequences for one prompt.

    Attributes:
        call: identity of the request, unique while it runs.
        chat: the output is read as a chat turn, with reasoning; else it is plain text.
        tools: tool calls are looked for in the output.
        functions: the tools that were offered.
        continued: the prompt ends with the beginning of the answer.
        calls_first: an answer that does not begin with a call has none.
        reasoning: the model may reason before it answers.
        reasoning_opened: the prompt ends with the opening reasoning tag.
        cache_namespace: keys and values are shared with calls of the same one only; "": with none.
        grammar: what the output is held to.
        caller: whom the tokens count for when callers take turns.
        priority: the higher is served first, and takes slots from the lower.
        share: what of the model is kept for its owner; None: it shares the rest.
        deadline: when the call ends, whatever it has, on the engine's clock; None: never.
        prediction: what the caller expects of the output.
        adapter: digest of the adapter that the model computes it with; "": the model alone.
        sight: the images of the prompt, which has tokens for them.
    """

    call: int
    prompt: Listing[int]
    params: SamplingParams
    n: int = 1
    chat: bool = False
    tools: bool = False
    functions: Listing[Tool] = ()
    continued: bool = False
    calls_first: bool = False
    reasoning: bool = True
    reasoning_opened: bool = False
    cache_namespace: str = ""
    grammar: CompiledGrammar | None = None
    caller: str = ""
    priority: int = 0
    share: Share | None = None
    deadline: float | None = None
    prediction: Prediction | None = None
    adapter: str = ""
    sight: Sight | None = None
    prompt_param: str = "prompt"
    """The caller's word for the prompt, for errors."""


@dataclass(frozen=True, slots=True)
class Output:
    """Something that a step produced for a request."""

    call: int
    event: Delta | Finished


Logits = Array | DeviceLogits
_NOTHING: Array = np.zeros((0, 0), np.float32)


class Runner(Protocol):
    """Computes a plan: logits [sum(plan.rows), vocab], those of each of `plan.sampled` in turn."""

    def run(self, plan: Plan) -> Logits: ...

    def most_drafted(self, sequences: int) -> int:
        """Drafted tokens that a decode batch of so many can take of each; 0: none."""
        ...

    def interrupt(self) -> None:
        """Give up the prefill that is under way, if that can be: `run` raises Interrupted.

        From any thread. What a plan's moves have done stays done.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    """One sequence with everything that belongs to it."""

    call: int
    index: int
    sequence: Sequence
    sampler: Sampler
    reader: OutputReader
    params: SamplingParams
    guesses: Guesses
    constraint: Constraint | None = None


class LLMEngine:
    """Continuous batching over one runner.

    `gathered`: the runner wants the decoding sequences in the first slots. `clock` gives the
    seconds that deadlines are in.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        prompting: Prompting,
        *,
        vocab_size: int,
        slots: int,
        capacity: int,
        token_budget: int,
        max_waiting: int,
        max_waiting_per_caller: int | None = None,
        draft_tokens: int = 0,
        step_seconds: float = 0.0,
        gathered: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._prompting = prompting
        self._vocab_size = vocab_size
        self.capacity = capacity
        self._make_scheduler = functools.partial(
            Scheduler,
            slots=slots,
            capacity=capacity,
            token_budget=token_budget,
            max_waiting=max_waiting,
            max_waiting_per_caller=max_waiting_per_caller,
            gathered=gathered,
        )
        self._token_budget = token_budget
        self._pieces = Pieces(Pace(token_budget, step_seconds))
        self._speculation = Speculation(draft_tokens)
        self._clock = clock
        self._lock = threading.Lock()
        self._scheduler = self._make_scheduler()
        self._sequences: dict[Sequence, _Running] = {}
        self._calls: dict[int, list[_Running]] = {}
        self._cancelled: set[int] = set()
        # Its thread starts with the first grammar.
        self._masks = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._deadlines: list[tuple[float, int]] = []
        """A heap; calls that have ended stay in it until their time comes."""
        self._stepping = False
        self._between: list[Callable[[], None]] = []
        """What is to happen when the step under way has ended."""
        self.counters = Counters()

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def running(self) -> int:
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting

    @property
    def cached_positions(self) -> int:
        """Cache positions in use, over all running sequences."""
        with self._lock:
            return self._scheduler.cached_positions

    @property
    def classes(self) -> Classes:
        """How many sequences of each class of capacity run and wait."""
        with self._lock:
            return self._scheduler.classes

    def add(self, generation: Generation) -> None:
        """Queue a request. Raises RequestError, or CapacityError when the queue is full."""
        self._check(generation)
        group = [self._make(generation, index) for index in range(generation.n)]
        with self._lock:
            self._scheduler.add(running.sequence for running in group)
            self._sequences |= {running.sequence: running for running in group}
            self._calls[generation.call] = group
            if self._pieces.make_way():
                self._runner.interrupt()
            if generation.deadline is not None:
                heapq.heappush(self._deadlines, (generation.deadline, generation.call))

    def cancel(self, call: int) -> None:
        """Drop a request before the next step; each of its sequences then ends as cancelled."""
        with self._lock:
            if call in self._calls:
                self._cancelled.add(call)

    def step(self) -> list[Output]:
        """Compute one step. Only one thread may call it."""
        with self._lock:
            self._stepping = True
            outputs = self._drop_cancelled() + self._drop_expired()
            plan = self._scheduler.schedule(self._pieces.budget(self._sequences))
            self._pieces.begin(plan, alone=len(self._sequences) == 1)
        plan = self._with_drafts(plan)
        try:
            logits = self._run(plan)
        except Interrupted:
            # The slot still holds what it held before: its sequence goes on from there.
            plan, logits = dataclasses.replace(plan, prefills=()), _NOTHING
        with self._lock:
            self._pieces.end(plan)
            self.counters.add(plan)
            self._scheduler.commit(plan)
        outputs += self._read(plan, logits)
        with self._lock:
            self._stepping = False
            self._change()
        return outputs

    def between_steps(self, change: Callable[[], None]) -> None:
        """Let `change` happen while nothing is computed: now, or after the step under way.

        What is added afterwards finds it done.
        """
        with self._lock:
            self._between.append(change)
            if not self._stepping:
                self._change()

    def fail_all(self) -> list[Output]:
        """End every sequence with an error: a step failed, and the cache cannot be trusted."""
        with self._lock:
            outputs = [
                Output(running.call, _finished(running, FinishReason.ERROR))
                for running in self._sequences.values()
            ]
            self._scheduler = self._make_scheduler()
            self._sequences.clear()
            self._calls.clear()
            self._cancelled.clear()
            self._deadlines.clear()
            self._pieces.reset()
            self._stepping = False
            self._change()
        return outputs

    def check_integrity(self) -> None:
        """Every sequence is known to the scheduler, and to nobody twice."""
        with self._lock:
            self._scheduler.check_integrity()
            assert len(self._sequences) == self._scheduler.running + self._scheduler.waiting
            assert sum(len(group) for group in self._calls.values()) == len(self._sequences)

    def _check(self, generation: Generation) -> None:
        generation.params.check(self._vocab_size)
        prompt, param = generation.prompt, generation.prompt_param
        if not prompt:
            raise RequestError("the prompt is empty", param=param)
        if not 0 <= min(prompt) <= max(prompt) < self._vocab_size:
            raise RequestError(f"token ids must be below {self._vocab_size}", param=param)
        self.check_length(prompt, param)

    def check_length(self, prompt: Listing[int], param: str) -> None:
        """Raise RequestError if the context does not hold `prompt` and a token of the answer."""
        if len(prompt) >= self.capacity:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens; the context holds {self.capacity},"
                " the answer included",
                param=param,
                hint="shorten the prompt",
                code="context_length_exceeded",
            )

    def _make(self, generation: Generation, index: int) -> _Running:
        reader = OutputReader(
            self._tokenizer,
            generation.params,
            index,
            prompting=self._prompting if generation.chat else None,
            tools=generation.tools,
            functions=generation.functions,
            continued=generation.continued,
            calls_first=generation.calls_first,
            reasoning=generation.reasoning,
            reasoning_opened=generation.reasoning_opened,
        )
        sampler = Sampler(generation.params, generation.prompt, index=index)
        sight, prompt = generation.sight, generation.prompt
        sequence = Sequence(
            prompt if sight is None else sight.keyed(prompt),
            namespace=_namespace(generation),
            adapter=generation.adapter,
            caller=generation.caller,
            priority=generation.priority,
            share=generation.share,
            beside=sight,
        )
        constraint = None
        if generation.grammar is not None:
            # Without the model's end tokens among its own, a request has asked to ignore them.
            ignore_end = not generation.grammar.end_ids <= generation.params.end_ids
            constraint = generation.grammar.begin(ignore_end=ignore_end)
        guesses = Guesses(self._drafters(generation, sequence))
        return _Running(
            generation.call,
            index,
            sequence,
            sampler,
            reader,
            generation.params,
            guesses,
            constraint,
        )

    def _drafters(self, generation: Generation, sequence: Sequence) -> list[Drafter]:
        """Who guesses for `sequence`, the most reliable first."""
        drafters: list[Drafter] = []
        if generation.prediction is not None:
            drafters.append(
                PredictionDrafter(generation.prediction, sequence.tokens, sequence.prompt_length)
            )
        return [*drafters, PromptLookup(sequence.tokens)]

    def _change(self) -> None:
        changes, self._between = self._between, []
        for change in changes:
            change()

    def _drop_cancelled(self) -> list[Output]:
        cancelled, self._cancelled = self._cancelled, set()
        return [output for call in cancelled for output in self._drop(call, FinishReason.CANCELLED)]

    def _drop_expired(self) -> list[Output]:
        outputs: list[Output] = []
        while self._deadlines and self._deadlines[0][0] <= self._clock():
            _, call = heapq.heappop(self._deadlines)
            outputs += self._drop(call, FinishReason.DEADLINE)
        return outputs

    def _drop(self, call: int, reason: FinishReason) -> list[Output]:
        """End what is left of a call."""
        group = list(self._calls.get(call, ()))
        return [Output(call, self._end(running, reason)) for running in group]

    def _with_drafts(self, plan: Plan) -> Plan:
        """`plan` with what is worth verifying of the guesses at its decoding sequences."""
        if not (plan.decodes and self._speculation.most and self._runner.most_drafted(1)):
            return plan
        if any(sequence.adapter for sequence in plan.decodes):
            # Several of its tokens at once would be rounded otherwise than one by one.
            return plan
        batch = [self._sequences[sequence] for sequence in plan.decodes]
        for running in batch:
            running.guesses.propose(min(self._speculation.most, self._left(running)))
        width = self._speculation.choose(
            [running.guesses for running in batch], self._widest(plan, batch)
        )
        drafts = tuple(running.guesses.take(width) for running in batch)
        return dataclasses.replace(plan, drafts=drafts) if any(drafts) else plan

    def _left(self, running: _Running) -> int:
        """Tokens that a draft may have: with one more the sequence would be at its end."""
        sequence, most = running.sequence, running.params.max_tokens
        room = self.capacity - len(sequence.tokens)
        return (room if most is None else min(room, most - sequence.generated)) - 1

    def _widest(self, plan: Plan, batch: Listing[_Running]) -> int:
        """Tokens of each sequence that runner, budget and slots have room for, padded."""
        budget = self._token_budget - plan.token_count
        room = self.capacity - max(len(running.sequence.tokens) for running in batch)
        return min(self._runner.most_drafted(len(batch)), budget // len(batch), room)

    def _run(self, plan: Plan) -> Logits:
        start = self._clock()
        logits = self._runner.run(plan)
        seconds = self._clock() - start
        if plan.decodes and not plan.prefills and not plan.moves:
            width = max(map(len, plan.drafts), default=0)
            self._speculation.measured(len(plan.decodes), width, seconds)
        self._pieces.pace.measured(sum(chunk.count for chunk in plan.prefills), seconds)
        return logits

    def _read(self, plan: Plan, logits: Logits) -> list[Output]:
        """Sample each sequence's rows, one after the other, as long as its draft holds.

        So the tokens, and the numbers drawn for them, are those of as many steps without drafts.
        """
        outputs: list[Output] = []
        reading, depth = list(self._rows(plan)), 0
        while reading:
            sampled = [_sample(running, logits, first + depth) for running, first in reading]
            with self._lock:
                held = [
                    self._advance(running, token, outputs)
                    for (running, _), token in zip(reading, sampled, strict=True)
                ]
                self._prepare_masks(plan)
            reading = [pair for pair, goes_on in zip(reading, held, strict=True) if goes_on]
            depth += 1
        return outputs

    def _rows(self, plan: Plan) -> Iterator[tuple[_Running, int]]:
        """Who is sampled, and the first of its rows."""
        first = 0
        for sequence, count in zip(plan.sampled, plan.rows, strict=True):
            yield self._sequences[sequence], first
            first += count

    def _prepare_masks(self, plan: Plan) -> None:
        """Let the next masks be computed beside the next run of the model."""
        for sequence in plan.sampled:
            running = self._sequences.get(sequence)
            if running is not None and running.constraint is not None:
                running.constraint.prepare(self._masks)

    def _advance(self, running: _Running, sampled: Sampled, outputs: list[Output]) -> bool:
        """Book one sampled token. True if the next row counts: it was drafted and goes on."""
        drafted = running.guesses.book(sampled.token_id)
        self.counters.sampled(running.sequence)
        self.counters.accepted_tokens += drafted
        outputs += self._append(running, sampled)
        goes_on = drafted and running.sequence in self._sequences
        if goes_on:
            self._scheduler.accept(running.sequence)
        return goes_on

    def _append(self, running: _Running, sampled: Sampled) -> list[Output]:
        """Give a sequence its next token; it may end with it."""
        room = self._scheduler.append(running.sequence, sampled.token_id)
        if running.constraint is not None and running.constraint.broken:
            dropped = Output(running.call, running.reader.drop(sampled))
            return [dropped, Output(running.call, self._end(running, FinishReason.ERROR))]
        outputs = [Output(running.call, running.reader.read(sampled))]
        reason = _end_reason(running, sampled.token_id, room)
        if reason is not None:
            rest = running.reader.finish()
            if rest is not None:
                outputs.append(Output(running.call, rest))
            if reason is FinishReason.STOP and running.reader.called:
                reason = FinishReason.TOOL_CALLS
            outputs.append(Output(running.call, self._end(running, reason)))
        return outputs

    def _end(self, running: _Running, reason: FinishReason) -> Finished:
        """Free everything that the sequence held."""
        finished = _finished(running, reason)
        self._scheduler.remove(running.sequence)
        self._pieces.forget(running.sequence)
        del self._sequences[running.sequence]
        group = self._calls[running.call]
        group.remove(running)
        if not group:
            del self._calls[running.call]
        if reason is FinishReason.CANCELLED:
            self.counters.cancelled += 1
        elif reason is FinishReason.DEADLINE:
            self.counters.expired += 1
        else:
            self.counters.finished += 1
        return finished


def _namespace(generation: Generation) -> Hashable:
    """Who shares keys and values: an adapter computes others than the model alone."""
    if not (generation.cache_namespace and generation.adapter):
        return generation.cache_namespace
    return generation.adapter, generation.cache_namespace


def _sample(running: _Running, logits: Logits, row: int) -> Sampled:
    constraint = running.constraint
    if constraint is None and running.sampler.takes_likeliest and isinstance(logits, DeviceLogits):
        return running.sampler.take(logits.greedy[row])
    allowed = None if constraint is None else constraint.allowed()
    return running.sampler.sample(logits[row], allowed)


def _end_reason(running: _Running, token_id: int, room: bool) -> FinishReason | None:
    params, constraint = running.params, running.constraint
    if token_id in params.end_ids or running.reader.stop:
        return FinishReason.STOP
    if constraint is not None:
        if constraint.ends_with(token_id):
            return FinishReason.STOP
        constraint.advance(token_id)
        if constraint.complete:
            return FinishReason.STOP
        if constraint.broken:
            return FinishReason.ERROR
    if not room or running.sequence.generated == params.max_tokens:
        return FinishReason.LENGTH
    return None


def _finished(running: _Running, reason: FinishReason) -> Finished:
    sequence, reader = running.sequence, running.reader
    return Finished(
        running.index,
        reason,
        # A sequence that was cancelled early may not have had all of its prompt computed.
        prompt_tokens=sequence.prompt_reached,
        generated_tokens=reader.tokens,
        reasoning_tokens=reader.reasoning_tokens,
        stop=reader.stop,
        cached_tokens=sequence.cached,
        accepted_prediction_tokens=running.guesses.accepted,
        rejected_prediction_tokens=running.guesses.rejected,
    )
