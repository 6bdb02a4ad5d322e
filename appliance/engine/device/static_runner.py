"""Runs a decoder's graph for TensorRT over slots in the device's memory.

Owns the step where each kind of step has an engine of its own: pieces of one prompt, and decoding
of so many sequences, for each capacity of the cache. Never asks an engine for a shape that it was
not built for, since that is an error. A sequence alone with a draft is computed as a piece of a
prompt is, of which several rows are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Listing

import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec
from appliance.compiler.profiles import MOST_ROWS, Profile, find
from appliance.engine.device.binding import DeviceBinding, StepBuffers
from appliance.engine.device.draw import DeviceDraw
from appliance.engine.device.logits import DeviceLogits
from appliance.engine.device.static_pool import StaticPool
from appliance.scheduler import Plan

_KEPT = 256
"""Bindings of prompts: one for each slot and capacity, the latest ones."""


class StaticRunner:
    """Executes plans.

    Args:
        sessions: the `trt` graph (docs/bundle-format.md) for each planned profile.
        pool: the cache; its capacities are the profiles'.
        max_chunk: tokens that a prefill chunk has at most.
        draws: draws from its logits on the same device; closed with it. None: rows are fetched.
    """

    def __init__(
        self,
        sessions: Mapping[Profile, ort.InferenceSession],
        pool: StaticPool,
        decoder: DecoderSpec,
        max_chunk: int,
        draws: DeviceDraw | None,
    ) -> None:
        self._sessions = sessions
        self._draws = draws
        self._profiles = tuple(sessions)
        self._pool = pool
        self._vocab = vocab = decoder.vocab_size
        slots = pool.shape.slots
        # A chunk that does not end its prompt gives a row all the same, which nobody reads.
        self._prompt = StepBuffers(
            [pool.device],
            vocab,
            tokens=max_chunk,
            batch=1,
            rows=MOST_ROWS,
            results=slots + MOST_ROWS,
        )
        self._batch = StepBuffers(
            [pool.device], vocab, tokens=slots, batch=slots, rows=slots, results=slots
        )
        self._prompts: dict[tuple[int, int], DeviceBinding] = {}
        self._decoders: dict[tuple[int, int], DeviceBinding] = {}

    def run(self, plan: Plan) -> DeviceLogits:
        """Compute a plan; the logits of each of `plan.sampled` in turn, until the next run."""
        for move in plan.moves:
            self._pool.move(move)
        prompts = [(chunk.slot, chunk.start + chunk.count) for chunk in plan.prefills]
        starts, new = [sequence.computed for sequence in plan.decodes], plan.decoded
        ends = [start + len(tokens) for start, tokens in zip(starts, new, strict=True)]
        self._pool.hold([*prompts, *enumerate(ends)])
        ended = 0
        for chunk in plan.prefills:
            self.prefill(chunk.slot, chunk.start, chunk.tokens, ended)
            ended += chunk.completes
        if any(plan.drafts):
            (tokens,), (start,) = new, starts
            self.prefill(0, start, tokens, ended, rows=len(tokens))
            ended, starts = ended + len(tokens), []
        addresses = [self._prompt.logits_at(result) for result in range(ended)]
        greedy = self._prompt.chosen(ended)
        if starts:
            self.decode(starts, [token for (token,) in new])
            addresses += [self._batch.logits_at(result) for result in range(len(starts))]
            greedy += self._batch.chosen(len(starts))
        return DeviceLogits(self._pool.device, self._vocab, addresses, greedy, self._draws)

    def most_drafted(self, sequences: int) -> int:
        """None in a batch, of which the engines take one token of each sequence."""
        return MOST_ROWS - 1 if sequences == 1 else 0

    def interrupt(self) -> None:
        """Nothing: a step on a GPU is over before it could be given up."""

    def prefill(
        self, slot: int, start: int, tokens: Listing[int], result: int, rows: int = 1
    ) -> None:
        """Compute `tokens` from position `start` on in `slot`, for which the pool has room.

        What follows the last `rows` becomes results of the prompts', from number `result` on.
        """
        self._prompt.fill([tokens], [start], rows)
        key = slot, self._pool.capacity
        prompts = self._prompts.pop(key, None)
        if prompts is None:
            profile = find(self._profiles, "prefill", 1, len(tokens), self._pool.capacity)
            prompts = self._bind(self._sessions[profile], self._prompt, slot, 1)
        self._prompts[key] = prompts
        if len(self._prompts) > _KEPT:
            del self._prompts[next(iter(self._prompts))]
        prompts.aim(len(tokens), start + len(tokens), result, rows)
        prompts.run()

    def decode(self, starts: Listing[int], tokens: Listing[int]) -> None:
        """Append `tokens[i]` at position `starts[i]` to the sequence in slot i, for all at once."""
        batch = len(tokens)
        key = batch, self._pool.capacity
        decoder = self._decoders.get(key)
        if decoder is None:
            profile = find(self._profiles, "decode", batch, 1, self._pool.capacity)
            decoder = self._bind(self._sessions[profile], self._batch, 0, batch)
            decoder.aim(1, self._pool.capacity, 0)
            self._decoders[key] = decoder
        self._batch.fill([[token] for token in tokens], starts)
        decoder.run()

    def close(self) -> None:
        """Give the device's memory back."""
        self._decoders.clear()
        self._prompts.clear()
        self._prompt.close()
        self._batch.close()
        if self._draws is not None:
            self._draws.close()
        self._pool.close()

    def _bind(
        self, session: ort.InferenceSession, buffers: StepBuffers, first: int, batch: int
    ) -> DeviceBinding:
        vocab = self._vocab
        return DeviceBinding(session, self._pool, buffers, vocab, first=first, batch=batch)
