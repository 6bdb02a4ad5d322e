"""Runs a model's graphs with adapters, over the slots of the plain ones.

Owns the bindings of an adapter bank: all of its rows for a decode batch, whose sequences have
masks; one adapter's own for a piece of a prompt. What the plain graphs write into a slot these go
on from, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing

import numpy as np
import onnxruntime as ort

from appliance.engine.adapters.bank import AdapterBank
from appliance.engine.binding import GraphBinding
from appliance.engine.decode_batch import DecodeBatch
from appliance.engine.prompt_graph import BytePrompts, Prompts, SlotPrompts
from appliance.engine.slot_pool import Array, SlotPool


class AdaptedGraphs:
    """The graphs with adapters of one model.

    Args:
        session: the decoder graph.
        pool: the cache that it reads and writes, the plain graphs' too.
        max_chunk: most tokens that a prefill chunk has.
        prompts: the second graph, of a model with an 8-bit cache.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        pool: SlotPool,
        max_chunk: int,
        prompts: ort.InferenceSession | None = None,
    ) -> None:
        self._session = session
        self._pool = pool
        self._bank: AdapterBank | None = None
        self._batches: dict[tuple[int, str], _Masked] = {}
        """Size, and the only adapter of a batch that has just one -> the batch."""
        self._adapter = ""
        self._bound: dict[GraphBinding, tuple[str, list[Array]]] = {}
        """A prompt's binding -> whose rows it has, and the masks that it reads."""
        self._prompts: Prompts
        if prompts is None:
            self._prompts = SlotPrompts(session, pool, max_chunk, self._bind_one)
        else:
            self._prompts = BytePrompts(prompts, pool, max_chunk, self._bind_one)

    def use(self, bank: AdapterBank) -> None:
        """Compute with these adapters from the next run on. Not while one is under way."""
        self._bank = bank
        self._batches.clear()
        self._bound.clear()

    def interrupt(self) -> None:
        """Give up the piece of a prompt that is being computed."""
        self._prompts.interrupt()

    def prefill(
        self, adapter: str, slot: int, start: int, tokens: Listing[int], logits: Array
    ) -> None:
        """As `ModelRunner.prefill`, with one adapter."""
        self._adapter = adapter
        self._prompts.compute(slot, start, tokens, logits)

    def decode(
        self,
        adapters: Listing[str],
        starts: Listing[int],
        tokens: Listing[Listing[int]],
        logits: Array,
    ) -> None:
        """As `ModelRunner.decode`, one token of each; `adapters[i]` is slot i's, or "" for none."""
        assert self._bank is not None, "adapters come before their sequences"
        called = {*adapters} - {""}
        only = called.pop() if len(called) == 1 else ""
        batch = self._batches.get((len(tokens), only))
        if batch is None:
            batch = self._batches[len(tokens), only] = _Masked(
                self._session, self._pool, self._bank, len(tokens), only
            )
        batch.run(adapters, starts, tokens, logits)

    def _bind_one(self, binding: GraphBinding) -> None:
        """Give a prompt's binding the rows of its adapter, unless it has them."""
        assert self._bank is not None, "adapters come before their sequences"
        bank, adapter = self._bank, self._adapter
        assert adapter in bank.digests, "adapters come before their sequences"
        if binding in self._bound and self._bound[binding][0] == adapter:
            return
        for place in bank.places():
            _bind(binding, place, *bank.one(adapter, place))
        masks = []
        for target in bank.targets:
            masks.append(np.ones((1, 1, bank.count(adapter, target.name)), np.float32))
            binding.bind_input(f"adapter_mask_{target.name}", masks[-1])
        self._bound[binding] = adapter, masks


class _Masked:
    """A decode batch over all rows of a bank, or over those of the `only` adapter that it has."""

    def __init__(
        self,
        session: ort.InferenceSession,
        pool: SlotPool,
        bank: AdapterBank,
        batch: int,
        only: str,
    ) -> None:
        assert not only or only in bank.digests, "adapters come before their sequences"
        self._bank = bank
        self._only = only
        self._batch = DecodeBatch(session, pool, batch, 1)
        self._adapters: Listing[str] | None = None
        self._masks = {
            target: np.zeros((batch, 1, bank.count(only, target) if only else ranks), np.float32)
            for target, ranks in bank.ranks.items()
        }
        for target, mask in self._masks.items():
            self._batch.binding.bind_input(f"adapter_mask_{target}", mask)
        for place in bank.places():
            rows = bank.one(only, place) if only else bank.all(place)
            _bind(self._batch.binding, place, *rows)

    def run(
        self,
        adapters: Listing[str],
        starts: Listing[int],
        tokens: Listing[Listing[int]],
        logits: Array,
    ) -> None:
        if adapters != self._adapters:
            self._mask(adapters)
        self._batch.run(starts, tokens, logits)

    def _mask(self, adapters: Listing[str]) -> None:
        assert {*adapters} <= {"", *self._bank.digests}, "adapters come before their sequences"
        for target, mask in self._masks.items():
            mask[:] = 0
            for index, adapter in enumerate(adapters):
                rows = self._bank.rows(adapter, target)
                if rows is not None:
                    mask[index, 0, slice(None) if self._only else rows] = 1
        self._adapters = adapters


def _bind(binding: GraphBinding, place: tuple[int, str], down: Array, up: Array) -> None:
    layer, target = place
    binding.bind_input(f"adapter_down_{layer}_{target}", down)
    binding.bind_input(f"adapter_up_{layer}_{target}", up)
