"""Room on the devices for the steps of one kind, prompts or decoding, and their bindings.

Owns what such steps read and write beside the cache, on each stage's device: integers, positions
and features of images, what stages hand on, results. Each stage waits for what is handed to it, and
the devices of the others are idle meanwhile; recording is each stage's own, and what travels
between two of them is copied in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise, zip_longest

from appliance.engine.binding import Ids
from appliance.engine.device.adapters import DeviceAdapters
from appliance.engine.device.binding import DeviceBinding, StepBuffers
from appliance.engine.device.stages import Handover, Stages
from appliance.engine.device.steps import Binding
from appliance.engine.vision.device_sight import sight_for
from appliance.engine.vision.sight import Sight


class Room:
    """Of one kind of steps.

    Args:
        adapters: of each stage; none if the graph has no room for any.
        tokens, batch, rows, results: see `StepBuffers`.
        features: of images, in a run at most.
        recording: the sessions record every run that they are not told not to.

    Attributes:
        sees: whether the graph reads images.

    Raises CapacityError.
    """

    def __init__(
        self,
        stages: Stages,
        adapters: Sequence[DeviceAdapters],
        vocab: int,
        *,
        tokens: int,
        batch: int,
        rows: int,
        results: int,
        features: int,
        recording: bool,
    ) -> None:
        self._stages, self._adapters = stages, adapters
        self._vocab, self._recording = vocab, recording
        with ExitStack() as made:
            self.buffers = StepBuffers(
                stages.devices, vocab, tokens=tokens, batch=batch, rows=rows, results=results
            )
            made.callback(self.buffers.close)
            self._sights = [
                sight_for(stage.session, stage.pool.device, tokens=tokens, features=features)
                for stage in stages
            ]
            for sight in self._sights:
                if sight is not None:
                    made.callback(sight.close)
            self._handovers = [Handover(*pair, tokens) for pair in pairwise(stages)]
            for handover in self._handovers:
                made.callback(handover.close)
            self.close = made.pop_all().close
            """Gives the devices' memory back."""
        self.sees = any(sight is not None for sight in self._sights)

    def read(self, starts: Sequence[int] | Ids, width: int) -> None:
        """The next run computes words alone: see `DeviceSight.read`."""
        for sight in self._sights:
            if sight is not None:
                sight.read(starts, width)

    def show(self, shown: Sight, start: int, count: int) -> None:
        """The next run computes `count` tokens of a prompt with images, from `start` on."""
        for sight in self._sights:
            if sight is not None:
                sight.show(shown, start, count)

    def bind(self, first: int, batch: int) -> Binding:
        """Runs over `batch` slots from slot `first` on."""
        ends = [None, *self._handovers, None]
        bindings = [
            DeviceBinding(
                *(stage.session, stage.pool, self.buffers, self._vocab),
                first=first,
                batch=batch,
                stage=number,
                before=before,
                behind=behind,
                sight=self._sights[number],
                adapters=self._adapters[number] if self._adapters else None,
                recording=self._recording,
            )
            for number, (stage, (before, behind)) in enumerate(
                zip(self._stages, pairwise(ends), strict=True)
            )
        ]
        return bindings[0] if len(bindings) == 1 else _InStages(bindings, self._handovers, batch)


class _InStages:
    """Runs through all stages, one after the other; otherwise as a `DeviceBinding`."""

    def __init__(
        self, bindings: Sequence[DeviceBinding], handovers: Sequence[Handover], batch: int
    ) -> None:
        self._bindings, self._handovers = bindings, handovers
        self._batch = self._tokens = batch

    def aim(self, width: int, total: int, result: int, rows: int = 1) -> None:
        self._tokens = self._batch * width
        for binding in self._bindings:
            binding.aim(width, total, result, rows)

    def record(self, number: int) -> None:
        for binding in self._bindings:
            binding.record(number)

    def run(self) -> None:
        for binding, handover in zip_longest(self._bindings, self._handovers):
            binding.run()
            if handover is not None:
                handover.hand_on(self._tokens)
