"""Runs a decoder's graph for CUDA over slots in the device's memory.

Owns the step on a GPU: cache, logits and bindings stay on the device, each step sends tokens and
lengths and brings back what was chosen. Starting several hundred small kernels one by one takes
longer than they do, so decoding is recorded for each number of sequences and replayed as a CUDA
graph, where the session can, and prompts that begin together are computed together
(docs/decisions/0166-steps-on-a-gpu.md). A sequence alone may have several tokens in a step, for a
draft: the graph takes more of one than one only where no other is beside it. A model that one GPU
has no room for runs in stages (stages.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from contextlib import ExitStack

import numpy as np

from appliance.bundle.specs import DecoderSpec
from appliance.compiler.probe import takes_adapters
from appliance.compiler.profiles import MOST_ROWS
from appliance.engine.adapters.adapters import Ready
from appliance.engine.adapters.bank import AdapterBank
from appliance.engine.binding import Ids
from appliance.engine.choosing import Choice
from appliance.engine.device.adapters import DeviceAdapters, HeldAdapters
from appliance.engine.device.draw import DeviceDraw
from appliance.engine.device.logits import DeviceLogits
from appliance.engine.device.prompt_groups import MOST_TOGETHER, groups
from appliance.engine.device.room import Room
from appliance.engine.device.stages import Stage, Stages
from appliance.engine.device.steps import Binding, Steps
from appliance.engine.device.wide_heads import wide_heads
from appliance.engine.sampling import SamplingParams
from appliance.engine.vision.sight import Sight, sight_of
from appliance.scheduler import Plan, PrefillChunk

_KEPT_PROMPTS = 256


class DeviceRunner:
    """Executes plans.

    Args:
        stages: of the `cuda` graph (docs/bundle-format.md), each with the cache on whose device
            everything else of it is put too; one if the graph is whole.
        max_chunk: most tokens that the prefill chunks of a plan have together.
        draws: draws from its logits on the last device; closed with it. None: rows are fetched.
        record: decoding is recorded and replayed; the sessions must be able to.
        record_drafts: so are steps of several tokens of a sequence.
    """

    def __init__(
        self,
        stages: Listing[Stage],
        decoder: DecoderSpec,
        max_chunk: int,
        draws: DeviceDraw | None,
        *,
        record: bool,
        record_drafts: bool = False,
    ) -> None:
        self._stages = Stages(stages)
        self._shape = self._stages.shape
        self._draws = draws
        self._vocab = vocab = decoder.vocab_size
        slots, self._most_tokens = self._shape.slots, max_chunk
        self._wide = wide_heads(decoder, self._shape.capacity, max_chunk)
        self._alone = self._stages.running or self._wide is not None
        self._adapters = _adapters_of(self._stages)
        # A chunk that does not end its prompt gives a row all the same, which nobody reads.
        self._prompt = Room(
            *(self._stages, self._adapters, vocab),
            tokens=max_chunk,
            batch=MOST_TOGETHER,
            rows=MOST_TOGETHER,
            results=slots + 1,
            features=max_chunk,
            recording=record,
        )
        most = max(slots, MOST_ROWS)
        self._batch = Room(
            *(self._stages, self._adapters, vocab),
            tokens=most,
            batch=slots,
            rows=most,
            results=most,
            features=0,
            recording=record,
        )
        self._prompts: dict[tuple[int, int], Binding] = {}
        self._steps = Steps(
            lambda batch: self._batch.bind(0, batch),
            *(self._batch.buffers, self._shape.capacity),
            self._stages.restored if self._stages.running else None,
            record=record,
            record_drafts=record and record_drafts,
        )

    def run(self, plan: Plan) -> DeviceLogits:
        """Compute a plan; the logits of each of `plan.sampled` in turn, until the next run."""
        for move in plan.moves:
            self._stages.move(move)
        recorded, ended = self._steps.recorded, 0
        for together in self._groups(plan.prefills):
            (first, *_) = together
            tokens = [chunk.tokens for chunk in together]
            self._choose([chunk.sequence.adapter for chunk in together])
            for start, part in self._runs(first.start, tokens):
                self.prefill(first.slot, start, part, ended, sight_of(first.sequence))
            if first.snapshot is not None:
                self._stages.keep(first.slot, first.snapshot)
            ended += sum(chunk.completes for chunk in together)
        addresses = [self._prompt.buffers.logits_at(result) for result in range(ended)]
        greedy = self._prompt.buffers.chosen(ended)
        if plan.decodes:
            new = plan.decoded
            count = sum(map(len, new))
            self._choose([sequence.adapter for sequence in plan.decodes])
            self.decode(
                [sequence.computed for sequence in plan.decodes],
                new,
                [sight_of(sequence) for sequence in plan.decodes],
            )
            addresses += [self._batch.buffers.logits_at(result) for result in range(count)]
            greedy += self._batch.buffers.chosen(count)
        prepared = self._steps.recorded > recorded
        last = self._stages.devices[-1]
        return DeviceLogits(*(last, self._vocab, addresses, greedy, self._draws), prepared=prepared)

    def _groups(self, chunks: Listing[PrefillChunk]) -> Iterator[list[PrefillChunk]]:
        """What one run computes together; alone what has a running state, which would read the
        padding of a shorter prompt, and what has wide heads, whose kernel takes none."""
        if self._alone:
            return ([chunk] for chunk in chunks)
        return groups(chunks, self._most_tokens)

    def _runs(
        self, start: int, tokens: Listing[Listing[int]]
    ) -> Iterator[tuple[int, Listing[Listing[int]]]]:
        """The runs that compute pieces of prompts, one but where heads are wide: where each begins,
        and its tokens."""
        if self._wide is None:
            yield start, tokens
            return
        (alone,) = tokens
        for at, count in self._wide.pieces(start, len(alone)):
            yield at, [alone[at - start : at - start + count]]

    def most_drafted(self, sequences: int) -> int:
        """None in a batch, of which the graph takes one token of each sequence, nor with running
        states, of which a wrong guess could not be cut off."""
        return self._most_rows - 1 if sequences == 1 and not self._stages.running else 0

    @property
    def _most_rows(self) -> int:
        """Tokens of a sequence in a step."""
        return MOST_ROWS if self._wide is None else min(MOST_ROWS, self._wide.longest[1])

    def interrupt(self) -> None:
        """Nothing: a step on a GPU is over before it could be given up."""

    def prefill(
        self,
        slot: int,
        start: int,
        tokens: Listing[Listing[int]],
        result: int,
        sight: Sight | None = None,
    ) -> None:
        """Compute `tokens[i]` from position `start` on in slot `slot` + i, for all at once.

        What follows the last token of each becomes a result of the prompts', from number
        `result` on. More than one sequence must start at position 0, and show no images.
        """
        batch, width = len(tokens), max(map(len, tokens))
        assert batch == 1 or (start == 0 and sight is None and not self._alone)
        if sight is None:
            self._prompt.read([start] * batch, width)
        else:
            tokens = [sight.plain(start, tokens[0])]
            self._prompt.show(sight, start, width)
        if start == 0:
            self._stages.begin(slot)
        self._prompt.buffers.fill(tokens, [start] * batch)
        prompts = self._prompts.pop((slot, batch), None)
        if prompts is None:
            prompts = self._prompt.bind(slot, batch)
        self._prompts[slot, batch] = prompts
        if len(self._prompts) > _KEPT_PROMPTS:
            del self._prompts[next(iter(self._prompts))]
        prompts.aim(width, start + width, result)
        prompts.run()

    def decode(
        self,
        starts: Listing[int],
        tokens: Listing[Listing[int]],
        sights: Listing[Sight | None] | None = None,
    ) -> None:
        """Append `tokens[i]` from position `starts[i]` on to the sequence in slot i, for all at
        once: one of each, or up to `MOST_ROWS` of a sequence alone. Each gives a result.
        """
        batch, width = len(tokens), len(tokens[0])
        assert width == 1 or batch == 1
        if self._batch.sees:
            self._batch.read(_positions(starts, sights or [None] * batch), width)
        self._steps.run(starts, tokens)

    @property
    def takes_adapters(self) -> bool:
        """Whether the graph has room for them."""
        return bool(self._adapters)

    def prepare(self, bank: AdapterBank) -> Ready:
        """Put `bank` onto the device. Raises CapacityError."""
        assert self._adapters, "the graph was asked"
        held: list[HeldAdapters] = []
        with ExitStack() as made:
            for adapters in self._adapters:
                held.append(adapters.prepare(bank))
                made.callback(held[-1].close)
            kept = made.pop_all()
        return Ready(lambda: self._adopt(held), kept.close)

    def _adopt(self, held: Listing[HeldAdapters]) -> None:
        """Nothing that was bound or recorded has the new addresses."""
        self._steps.clear()
        self._prompts.clear()
        for adapters, one in zip(self._adapters, held, strict=True):
            adapters.use(one)

    def _choose(self, chosen: Listing[str]) -> None:
        for adapters in self._adapters:
            adapters.choose(chosen)

    def warm_up(self) -> None:
        """Run steps of most sizes over slots that nobody has yet.

        Each size has kernels of its own, and a device loads them when they are first run, for up to
        a second: that shall be nobody's first token, and not what the pace is measured by.
        """
        longest = min(self._most_tokens, self._shape.capacity)
        if self._wide is not None:  # first, since what it takes serves all others
            start, width = self._wide.longest
            self.prefill(0, start, [[0] * width], 0)
        for width in _growing(longest, 4):
            for start, part in self._runs(0, [[0] * width]):
                self.prefill(0, start, part, 0)
        self.prefill(0, 1, [[0]], 0)
        for batch in _growing(self._shape.slots, 2):
            self.decode([0] * batch, [[0]] * batch)
        if not self._stages.running:
            self._warm_up_together()
        if self._draws is not None:
            everything = np.ones(self._vocab, np.bool_)
            choice = Choice(SamplingParams(top_p=0.9), allowed=everything)
            self._draws.weigh(self._batch.buffers.logits, [choice])

    def _warm_up_together(self) -> None:
        """Steps of several tokens, and prompts in one run."""
        for width in range(2, 1 + min(self._most_rows, self._shape.capacity)):
            self.decode([0], [[0] * width])
        if self._alone:
            return
        together = min(MOST_TOGETHER, self._shape.slots)
        width = min(64, self._shape.capacity, self._most_tokens // together)
        if width:
            self.prefill(0, 0, [[0] * width] * together, 0)

    def close(self) -> None:
        """Give the device's memory back."""
        self._steps.clear()
        self._prompts.clear()
        self._prompt.close()
        self._batch.close()
        if self._draws is not None:
            self._draws.close()
        for adapters in self._adapters:
            adapters.close()
        self._stages.close()


def _adapters_of(stages: Stages) -> list[DeviceAdapters]:
    """Room for the adapters of the steps' sequences, on each device; none if the graph has none."""
    sessions = [stage.session for stage in stages]
    if not any(map(takes_adapters, sessions)):
        return []
    most = max(stages.shape.slots, MOST_TOGETHER)
    return [DeviceAdapters(s.session, sessions, s.pool.device, most) for s in stages]


def _positions(starts: Listing[int], sights: Listing[Sight | None]) -> Ids:
    """Time, row and column of the next token of each sequence, [batch, 3]; all three grow by one
    with each token behind the prompt."""
    positions: Ids = np.repeat(np.array(starts, np.int64)[:, None], 3, axis=1)
    for row, (start, sight) in enumerate(zip(starts, sights, strict=True)):
        if sight is not None:
            positions[row] = sight.positions(start, 1)[0]
    return positions


def _growing(most: int, factor: int) -> list[int]:
    """1, what comes of multiplying it, and `most`."""
    return sorted({most, *(factor**n for n in range(most.bit_length()) if factor**n < most)})
