"""Runs a decoder's graph for CUDA over slots in the device's memory.

Owns the step on a GPU: cache, logits and bindings stay on the device, each step sends tokens and
lengths and brings back what was chosen. Starting several hundred small kernels one by one takes
longer than they do, so decoding is recorded for each number of sequences and replayed as a CUDA
graph, where the session can, and prompts that begin together are computed together
(docs/decisions/0166-steps-on-a-gpu.md). A sequence alone may have several tokens in a step, for a
draft: the graph takes more of one than one only where no other is beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from functools import partial

import numpy as np
import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec
from appliance.compiler.probe import takes_adapters
from appliance.compiler.profiles import MOST_ROWS
from appliance.engine.adapters.adapters import Ready
from appliance.engine.adapters.bank import AdapterBank
from appliance.engine.binding import Ids
from appliance.engine.choosing import Choice
from appliance.engine.device.adapters import DeviceAdapters, HeldAdapters
from appliance.engine.device.binding import DeviceBinding, StepBuffers
from appliance.engine.device.draw import DeviceDraw
from appliance.engine.device.logits import DeviceLogits
from appliance.engine.device.pool import DevicePool
from appliance.engine.device.prompt_groups import MOST_TOGETHER, groups
from appliance.engine.device.steps import Steps
from appliance.engine.sampling import SamplingParams
from appliance.engine.vision.device_sight import DeviceSight, sight_for
from appliance.engine.vision.sight import Sight, sight_of
from appliance.scheduler import Plan, PrefillChunk

_KEPT_PROMPTS = 256


class DeviceRunner:
    """Executes plans.

    Args:
        session: the `cuda` graph (docs/bundle-format.md).
        pool: the cache, on whose device everything else is put too.
        max_chunk: most tokens that the prefill chunks of a plan have together.
        draws: draws from its logits on the same device; closed with it. None: rows are fetched.
        record: decoding is recorded and replayed; the session must be able to.
        record_drafts: so are steps of several tokens of a sequence.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        pool: DevicePool,
        decoder: DecoderSpec,
        max_chunk: int,
        draws: DeviceDraw | None,
        *,
        record: bool,
        record_drafts: bool = False,
    ) -> None:
        self._session = session
        self._pool, self._states = pool, pool.states
        self._draws = draws
        self._vocab = vocab = decoder.vocab_size
        self._record = record
        slots, self._most_tokens = pool.shape.slots, max_chunk
        # A chunk that does not end its prompt gives a row all the same, which nobody reads.
        self._prompt = StepBuffers(
            *(pool, vocab),
            tokens=max_chunk,
            batch=MOST_TOGETHER,
            rows=MOST_TOGETHER,
            results=slots + 1,
        )
        most = max(slots, MOST_ROWS)
        self._batch = StepBuffers(pool, vocab, tokens=most, batch=slots, rows=most, results=most)
        self._shown = sight_for(session, pool.device, tokens=max_chunk, features=max_chunk)
        self._seen = sight_for(session, pool.device, tokens=most, features=0)
        self._adapters = _adapters_of(session, pool)
        self._prompts: dict[tuple[int, int], DeviceBinding] = {}
        self._steps = Steps(
            lambda batch: self._bind(self._batch, self._seen, 0, batch),
            *(self._batch, pool.shape.capacity, self._states),
            record=record,
            record_drafts=record and record_drafts,
        )

    def run(self, plan: Plan) -> DeviceLogits:
        """Compute a plan; the logits of each of `plan.sampled` in turn, until the next run."""
        for move in plan.moves:
            self._pool.move(move)
        recorded, ended = self._steps.recorded, 0
        for together in self._groups(plan.prefills):
            (first, *_) = together
            tokens = [chunk.tokens for chunk in together]
            self._choose([chunk.sequence.adapter for chunk in together])
            self.prefill(first.slot, first.start, tokens, ended, sight_of(first.sequence))
            if first.snapshot is not None:
                assert self._states is not None, "others can be cut anywhere"
                self._states.keep(first.slot, first.snapshot)
            ended += sum(chunk.completes for chunk in together)
        addresses = [self._prompt.logits_at(result) for result in range(ended)]
        greedy = self._prompt.chosen(ended)
        if plan.decodes:
            new = plan.decoded
            count = sum(map(len, new))
            self._choose([sequence.adapter for sequence in plan.decodes])
            self.decode(
                [sequence.computed for sequence in plan.decodes],
                new,
                [sight_of(sequence) for sequence in plan.decodes],
            )
            addresses += [self._batch.logits_at(result) for result in range(count)]
            greedy += self._batch.chosen(count)
        prepared = self._steps.recorded > recorded
        return DeviceLogits(
            *(self._pool.device, self._vocab, addresses, greedy, self._draws), prepared=prepared
        )

    def _groups(self, chunks: Listing[PrefillChunk]) -> Iterator[list[PrefillChunk]]:
        """What one run computes together; alone what has a running state, which would read the
        padding of a shorter prompt."""
        if self._states is None:
            return groups(chunks, self._most_tokens)
        return ([chunk] for chunk in chunks)

    def most_drafted(self, sequences: int) -> int:
        """None in a batch, of which the graph takes one token of each sequence, nor with running
        states, of which a wrong guess could not be cut off."""
        return MOST_ROWS - 1 if sequences == 1 and self._states is None else 0

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
        assert batch == 1 or (start == 0 and sight is None and self._states is None)
        if self._shown is not None:
            if sight is None:
                self._shown.read([start] * batch, width)
            else:
                tokens = [sight.plain(start, tokens[0])]
                self._shown.show(sight, start, width)
        if self._states is not None and start == 0:
            self._states.begin(slot)
        self._prompt.fill(tokens, [start] * batch)
        prompts = self._prompts.pop((slot, batch), None)
        if prompts is None:
            prompts = self._bind(self._prompt, self._shown, slot, batch)
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
        if self._seen is not None:
            self._seen.read(_positions(starts, sights or [None] * batch), width)
        self._steps.run(starts, tokens)

    @property
    def takes_adapters(self) -> bool:
        """Whether the graph has room for them."""
        return self._adapters is not None

    def prepare(self, bank: AdapterBank) -> Ready:
        """Put `bank` onto the device. Raises CapacityError."""
        assert self._adapters is not None, "the graph was asked"
        held = self._adapters.prepare(bank)
        return Ready(partial(self._adopt, self._adapters, held), held.close)

    def _adopt(self, adapters: DeviceAdapters, held: HeldAdapters) -> None:
        """Nothing that was bound or recorded has the new addresses."""
        self._steps.clear()
        self._prompts.clear()
        adapters.use(held)

    def _choose(self, adapters: Listing[str]) -> None:
        if self._adapters is not None:
            self._adapters.choose(adapters)

    def warm_up(self) -> None:
        """Run steps of most sizes over slots that nobody has yet.

        Each size has kernels of its own, and a device loads them when they are first run, for up to
        a second: that shall be nobody's first token, and not what the pace is measured by.
        """
        longest = min(self._most_tokens, self._pool.shape.capacity)
        for width in _growing(longest, 4):
            self.prefill(0, 0, [[0] * width], 0)
        self.prefill(0, 1, [[0]], 0)
        for batch in _growing(self._pool.shape.slots, 2):
            self.decode([0] * batch, [[0]] * batch)
        if self._states is None:
            self._warm_up_together()
        if self._draws is not None:
            everything = np.ones(self._vocab, np.bool_)
            choice = Choice(SamplingParams(top_p=0.9), allowed=everything)
            self._draws.weigh(self._batch.logits, [choice])

    def _warm_up_together(self) -> None:
        """Steps of several tokens, and prompts in one run."""
        for width in range(2, 1 + min(MOST_ROWS, self._pool.shape.capacity)):
            self.decode([0], [[0] * width])
        together = min(MOST_TOGETHER, self._pool.shape.slots)
        width = min(64, self._pool.shape.capacity, self._most_tokens // together)
        if width:
            self.prefill(0, 0, [[0] * width] * together, 0)

    def close(self) -> None:
        """Give the device's memory back."""
        self._steps.clear()
        self._prompts.clear()
        self._prompt.close()
        self._batch.close()
        for part in (self._shown, self._seen, self._draws, self._adapters):
            if part is not None:
                part.close()
        self._pool.close()

    def _bind(
        self, buffers: StepBuffers, sight: DeviceSight | None, first: int, batch: int
    ) -> DeviceBinding:
        return DeviceBinding(
            self._session,
            self._pool,
            buffers,
            self._vocab,
            first=first,
            batch=batch,
            sight=sight,
            adapters=self._adapters,
            recording=self._record,
        )


def _adapters_of(session: ort.InferenceSession, pool: DevicePool) -> DeviceAdapters | None:
    """Room for the adapters of the steps' sequences; None if the graph has none."""
    if not takes_adapters(session):
        return None
    return DeviceAdapters(session, pool.device, max(pool.shape.slots, MOST_TOGETHER))


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
