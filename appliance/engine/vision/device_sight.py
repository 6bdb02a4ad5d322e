"""What a decoder that reads images takes beside the words of a step, in a device's memory.

Positions and the places of features travel in one copy; features, in 16-bit floats, only with a
piece of a prompt that shows an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from appliance.engine.binding import Ids
from appliance.engine.device.device import Device
from appliance.engine.vision.sight import Sight

_AXES = 3
_ITEM_BYTES = 2

Bound = tuple[str, type[np.generic], tuple[int, ...], int]
"""Name, type, shape and address of an input."""


class DeviceSight:
    """Room for the steps of one kind.

    Args:
        levels, width: of the features; 0 for a stage that is given none.
        placed: whether positions are given; else the graph counts tokens itself.
        tokens: in a run at most, padding included.
        features: in a run at most.
    """

    def __init__(
        self,
        device: Device,
        levels: int,
        width: int,
        *,
        tokens: int,
        features: int,
        placed: bool = True,
    ) -> None:
        self._device = device
        self._placed = placed
        self._levels, self._width = levels, width
        self._tokens = tokens
        self._host: Ids = np.zeros((_AXES + 1) * tokens, np.int64)
        self._integers = device.allocate(self._host.nbytes)
        each = max(1, levels * width) * _ITEM_BYTES
        self._zeros = device.allocate(each)
        self._features = device.allocate((1 + features) * each) if features else self._zeros
        self._next = 1, self._zeros
        """Features of the next run, and where; of each level the first stands for words."""

    def read(self, starts: Sequence[int] | Ids, width: int) -> None:
        """The next run computes words alone: `width` of each sequence, from `starts` on.

        starts: [batch], or [batch, 3] where the axes are apart.
        """
        self._next = 1, self._zeros
        first = np.asarray(starts, np.int64).reshape(len(starts), -1)[:, None]
        positions = first + np.arange(width)[None, :, None]
        self._send(np.broadcast_to(positions, (len(starts), width, _AXES)))

    def show(self, sight: Sight, start: int, count: int) -> None:
        """The next run computes `count` tokens of a prompt with images, from `start` on."""
        if not self._levels:
            self._send(sight.positions(start, count))
            return
        features, index = sight.features(start, count)
        self._next = features.shape[1], self._features
        self._device.write(self._features, np.ascontiguousarray(features, np.float16))
        self._send(sight.positions(start, count), index)

    def inputs(self, batch: int, width: int) -> Iterator[Bound]:
        """What is bound for a run over `width` tokens of `batch` sequences."""
        if self._placed:
            yield "positions", np.int64, (batch, width, _AXES), self._integers
        index = self._integers + 8 * _AXES * self._tokens
        yield "feature_index", np.int64, (batch, width), index
        count, address = self._next
        yield "features", np.float16, (self._levels, count, self._width), address

    def close(self) -> None:
        """Give the device's memory back."""
        for address in {self._integers, self._zeros, self._features}:
            self._device.release(address)

    def _send(self, positions: Ids, index: Ids | None = None) -> None:
        places = self._host[_AXES * self._tokens :]
        places[:] = 0
        if index is not None:
            places[: len(index)] = index
        self._host[: positions.size] = positions.ravel()
        self._device.write(self._integers, self._host)


def sight_for(
    session: ort.InferenceSession, device: Device, *, tokens: int, features: int
) -> DeviceSight | None:
    """Room for what the graph takes; None if it reads words alone.

    Of a graph in stages the first takes features, and each the positions.
    """
    inputs: dict[str, Any] = {entry.name: entry for entry in session.get_inputs()}
    if "features" in inputs:
        levels, _, width = inputs["features"].shape
        placed = "positions" in inputs
        return DeviceSight(device, levels, width, tokens=tokens, features=features, placed=placed)
    if "positions" in inputs:
        return DeviceSight(device, 0, 0, tokens=tokens, features=0)
    return None
