"""The engine of one chat model: step() schedules, runs, samples and reads the output back.

Owns the running sequences. Callers add and cancel from any thread; one thread calls step().
The lock is held while sequences change hands, never while the model runs.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Listing
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from appliance.bundle.specs import Prompting
from appliance.engine.counters import Counters
from appliance.engine.device.logits import DeviceLogits
from appliance.engine.generation import Generation, Output
from appliance.engine.guessing.guesser import Guesser
from appliance.engine.guessing.guessing import Guessing, forced_tokens
from appliance.engine.interruption import Interrupted
from appliance.engine.output import Finished, FinishReason
from appliance.engine.pace import Pace
from appliance.engine.pieces import Pieces
from appliance.engine.roster import Roster
from appliance.engine.runner import Logits, Runner
from appliance.engine.running import Running
from appliance.engine.sampler import Sampled
from appliance.engine.slot_pool import Array
from appliance.engine.tokenizer import Tokenizer
from appliance.errors import RequestError
from appliance.scheduler import Classes, Plan, Scheduler, Sequence

_NOTHING: Array = np.zeros((0, 0), np.float32)


class LLMEngine:
    """Continuous batching over one runner.

    `gathered`: the runner wants the decoding sequences in the first slots, and pads them to the
    longest draft. It can set `snapshots` of a running state aside for each slot. `clock` gives the
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
        draft: Guesser | None = None,
        step_seconds: float = 0.0,
        shared_step_seconds: float = 0.0,
        gathered: bool = True,
        snapshots: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._prompting = prompting
        self._vocab_size = vocab_size
        self.slots = slots
        self.capacity = capacity
        self._make_scheduler = functools.partial(
            Scheduler,
            slots=slots,
            capacity=capacity,
            token_budget=token_budget,
            max_waiting=max_waiting,
            max_waiting_per_caller=max_waiting_per_caller,
            anew=0 if draft is None else draft.anew,
            gathered=gathered,
            snapshots=snapshots,
        )
        self._clock = clock
        pace = Pace(token_budget, step_seconds, shared_step_seconds)
        self._pieces = Pieces(pace, lambda: self._clock())
        self._guessing = Guessing(
            runner,
            draft_tokens,
            capacity=capacity,
            token_budget=token_budget,
            gathered=gathered,
            model=draft,
            clock=lambda: self._clock(),
        )
        self._lock = threading.Lock()
        self._scheduler = self._make_scheduler()
        self._roster = Roster()
        # Its thread starts with the first grammar.
        self._masks = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._stepping = False
        self._between: list[Callable[[], None]] = []
        """What is to happen when the step under way has ended."""
        self.counters = Counters()

    @property
    def has_work(self) -> bool:
        return bool(self._roster)

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

    def known_tokens(self, sequence: Sequence) -> int:
        """How many of the first tokens of `sequence` are computed here, or soon will be."""
        with self._lock:
            return self._scheduler.known_tokens(sequence)

    def add(self, generation: Generation) -> None:
        """Queue a request. Raises RequestError, or CapacityError when the queue is full."""
        self._check(generation)
        group = [self._begin(generation, index) for index in range(generation.n)]
        with self._lock:
            self._scheduler.add(running.sequence for running in group)
            self._roster.add(generation.call, group, generation.deadline)
            if self._pieces.make_way(generation.caller):
                self._runner.interrupt()

    def cancel(self, call: int) -> None:
        """Drop a request before the next step; each of its sequences then ends as cancelled."""
        with self._lock:
            self._roster.cancel(call)

    def step(self) -> list[Output]:
        """Compute one step. Only one thread may call it."""
        with self._lock:
            self._stepping = True
            outputs = self._drop_leaving()
            plan = self._scheduler.schedule(self._pieces.budget(self._roster))
            self._pieces.begin(plan, alone=self._roster.alone)
        self._guessing.follow(plan)
        catch_up = self._pieces.pace.tokens(alone=self._roster.alone)
        plan = self._guessing.with_drafts(plan, self._roster, catch_up)
        try:
            logits = self._run(plan)
        except Interrupted as given_up:
            # The slot still holds what it held before: its sequence goes on from there.
            plan = dataclasses.replace(plan, prefills=plan.prefills[: given_up.done])
            logits = _NOTHING
        with self._lock:
            self._pieces.end(plan)
            self.counters.add(plan, forced_tokens(plan, self._roster))
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
                Output(running.call, running.finished(FinishReason.ERROR))
                for running in self._roster.values()
            ]
            self._scheduler = self._make_scheduler()
            self._guessing.forget()
            self._roster = Roster()
            self._pieces.reset()
            self._stepping = False
            self._change()
        return outputs

    def check_integrity(self) -> None:
        """Every sequence is known to the scheduler, and to nobody twice."""
        with self._lock:
            self._scheduler.check_integrity()
            self._guessing.check_integrity()
            self._roster.check_integrity()
            assert len(self._roster) == self._scheduler.running + self._scheduler.waiting

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
                # The words by which clients of both APIs know that they have to shorten it.
                f"prompt is too long: {len(prompt)} tokens > {self.capacity} maximum,"
                " the answer included",
                param=param,
                hint="shorten the prompt",
                code="context_length_exceeded",
            )

    def _begin(self, generation: Generation, index: int) -> Running:
        rate = self._guessing.speculation.model
        return Running.begin(generation, index, self._tokenizer, self._prompting, rate)

    def _change(self) -> None:
        changes, self._between = self._between, []
        for change in changes:
            change()

    def _drop_leaving(self) -> list[Output]:
        """End what is left of calls that were cancelled, or whose time is up."""
        return [
            Output(running.call, self._end(running, reason))
            for running, reason in self._roster.leaving(self._clock())
        ]

    def _run(self, plan: Plan) -> Logits:
        start = self._clock()
        logits = self._runner.run(plan)
        if not (isinstance(logits, DeviceLogits) and logits.prepared):
            self._guessing.measured(plan, self._roster, self._clock() - start)
        self._guessing.observe(plan)
        seconds = self._clock() - start
        self._pieces.pace.measured(sum(chunk.count for chunk in plan.prefills), seconds)
        return logits

    def _read(self, plan: Plan, logits: Logits) -> list[Output]:
        """Sample each sequence's rows, one after the other, as long as its draft holds.

        So the tokens, and the numbers drawn for them, are those of as many steps without drafts.
        """
        outputs: list[Output] = []
        reading, depth = list(self._rows(plan)), 0
        while reading:
            if isinstance(logits, DeviceLogits):
                logits.weigh({first + depth: running.choice() for running, first in reading})
            sampled = [running.sample(logits, first + depth) for running, first in reading]
            with self._lock:
                held = [
                    self._advance(running, token, outputs)
                    for (running, _), token in zip(reading, sampled, strict=True)
                ]
                self._prepare_masks(plan)
            reading = [pair for pair, goes_on in zip(reading, held, strict=True) if goes_on]
            depth += 1
        return outputs

    def _rows(self, plan: Plan) -> Iterator[tuple[Running, int]]:
        """Who is sampled, and the first of its rows."""
        first = 0
        for sequence, count in zip(plan.sampled, plan.rows, strict=True):
            yield self._roster[sequence], first
            first += count

    def _prepare_masks(self, plan: Plan) -> None:
        """Let the next masks be computed beside the next run of the model."""
        for sequence in plan.sampled:
            running = self._roster.get(sequence)
            if running is not None and running.constraint is not None:
                running.constraint.prepare(self._masks)

    def _advance(self, running: Running, sampled: Sampled, outputs: list[Output]) -> bool:
        """Book one sampled token. True if the next row counts: it was drafted and goes on."""
        forced = running.guesses.certain
        drafted = running.guesses.book(sampled.token_id)
        self.counters.sampled(running.sequence)
        self.counters.accepted_tokens += drafted and not forced
        outputs += self._append(running, sampled)
        goes_on = drafted and running.sequence in self._roster
        if goes_on:
            self._scheduler.accept(running.sequence)
        return goes_on

    def _append(self, running: Running, sampled: Sampled) -> list[Output]:
        """Give a sequence its next token; it may end with it."""
        room = self._scheduler.append(running.sequence, sampled.token_id)
        if running.constraint is not None and running.constraint.broken:
            dropped = Output(running.call, running.reader.drop(sampled))
            return [dropped, Output(running.call, self._end(running, FinishReason.ERROR))]
        outputs = [Output(running.call, running.reader.read(sampled))]
        reason = running.end_reason(sampled.token_id, room=room)
        if reason is not None:
            rest = running.reader.finish()
            if rest is not None:
                outputs.append(Output(running.call, rest))
            if reason is FinishReason.STOP and running.reader.called:
                reason = FinishReason.TOOL_CALLS
            outputs.append(Output(running.call, self._end(running, reason)))
        return outputs

    def _end(self, running: Running, reason: FinishReason) -> Finished:
        """Free everything that the sequence held."""
        finished = running.finished(reason)
        self._scheduler.remove(running.sequence)
        self._pieces.forget(running.sequence)
        self._roster.remove(running)
        self.counters.ended(reason)
        return finished
