"""A decoder's stages, each on a device of its own, and what one hands on to the next.

A model that one GPU has no room for is cut between layers when it is compiled
(docs/decisions/0296-a-model-over-several-gpus.md). Each stage has its layers' cache beside it; what
travels is the states of a step's tokens, a few kilobytes of each. A model that is whole has one
stage. Owns what all stages do together: moves, states that are set aside, the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec
from appliance.engine.device.device import Device
from appliance.engine.device.pool import DevicePool, Layers, all_layers
from appliance.engine.vision.device_sight import Bound
from appliance.scheduler import Move

_PAST, _RUNNING = "past_key_", ("past_state_", "past_tail_")
_TYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def layers_of(session: ort.InferenceSession) -> Layers:
    """The layers that a stage computes."""
    names = [entry.name for entry in session.get_inputs()]
    return Layers(_numbers(names, (_PAST,)), _numbers(names, _RUNNING))


def share_of(layers: Layers, decoder: DecoderSpec) -> Fraction:
    """How much of the model's cache these layers have, at most."""
    each, whole = [heads.numbers for heads in decoder.layer_heads], all_layers(decoder)
    shares = [Fraction(sum(each[layer] for layer in layers.cached), sum(each))]
    if whole.running:
        shares.append(Fraction(len(layers.running), len(whole.running)))
    return max(shares)


def _numbers(names: Sequence[str], prefixes: tuple[str, ...]) -> range:
    found = {int(name.rpartition("_")[2]) for name in names if name.startswith(prefixes)}
    numbers = range(min(found), 1 + max(found)) if found else range(0)
    assert found == {*numbers}, "a stage has layers that follow each other"
    return numbers


class Stage(NamedTuple):
    """One of them: its session, and the cache of its layers."""

    session: ort.InferenceSession
    pool: DevicePool


class Stages:
    """All of a decoder's, in the order in which they compute.

    Attributes:
        shape: of the whole cache.
        running: whether some layer has a running state.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)
        self._states = [s.pool.states for s in stages if s.pool.states is not None]
        self.shape = stages[0].pool.shape
        self.running = bool(self._states)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self._stages)

    @property
    def devices(self) -> list[Device]:
        """Where each is; results are on the last."""
        return [stage.pool.device for stage in self._stages]

    def move(self, move: Move) -> None:
        """Copy or exchange what two slots hold, in every layer."""
        for stage in self._stages:
            stage.pool.move(move)

    def begin(self, slot: int) -> None:
        """Nothing was read in `slot`."""
        for states in self._states:
            states.begin(slot)

    def keep(self, slot: int, snapshot: int) -> None:
        """Set the running state of `slot` aside."""
        assert self._states, "others can be cut anywhere"
        for states in self._states:
            states.keep(slot, snapshot)

    @contextmanager
    def restored(self, batch: int) -> Iterator[None]:
        """The first `batch` slots' states are at the end what they are now.

        Raises CapacityError if there is no room for as many; then nothing was begun.
        """
        with ExitStack() as entered:
            for states in self._states:
                entered.enter_context(states.restored(batch))
            yield

    def close(self) -> None:
        """Give the devices' memory back."""
        for stage in self._stages:
            stage.pool.close()


class Handover:
    """Room for what one stage hands on to the next in a step, on both devices.

    Args:
        tokens: in a run at most, padding included.

    Raises CapacityError.
    """

    def __init__(self, before: Stage, behind: Stage, tokens: int) -> None:
        made = {entry.name for entry in before.session.get_outputs()}
        self._source, self._target = before.pool.device, behind.pool.device
        self._parts: list[_Part] = []
        try:
            for entry in behind.session.get_inputs():
                if entry.name in made:
                    self._parts.append(self._part(entry, tokens))
        except BaseException:
            self.close()
            raise

    def _part(self, entry: ort.NodeArg, tokens: int) -> _Part:
        kind, width = _TYPES[entry.type], entry.shape[-1]
        each = width * np.dtype(kind).itemsize
        made = self._source.allocate(tokens * each)
        try:
            return _Part(entry.name, kind, width, made, self._target.allocate(tokens * each))
        except BaseException:
            self._source.release(made)
            raise

    def made(self, batch: int, width: int) -> Iterator[Bound]:
        """What the stage before is bound to, for `width` tokens of `batch` sequences."""
        for part in self._parts:
            yield part.name, part.kind, (batch, width, part.width), part.source

    def given(self, batch: int, width: int) -> Iterator[Bound]:
        """The same of the stage behind."""
        for part in self._parts:
            yield part.name, part.kind, (batch, width, part.width), part.target

    def hand_on(self, tokens: int) -> None:
        """Copy what was made of so many tokens."""
        for part in self._parts:
            size = tokens * part.width * np.dtype(part.kind).itemsize
            self._target.fetch(part.target, self._source, part.source, size)

    def close(self) -> None:
        """Give the memory back."""
        while self._parts:
            part = self._parts.pop()
            self._source.release(part.source)
            self._target.release(part.target)


class _Part(NamedTuple):
    """One tensor: its name, type, last dimension, and where it lies on both devices."""

    name: str
    kind: type[np.generic]
    width: int
    source: int
    target: int
