"""A model is loaded on each GPU that it leaves half of the free memory of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import pytest

from appliance.compiler.memory import RESERVE_BYTES
from appliance.compiler.record import Fit
from appliance.config import EngineSettings
from appliance.engine.cache_budget import CacheShape
from appliance.engine.device.device import Device, HostDevice
from appliance.engine.device.opened import refuse_shorter
from appliance.engine.device.spread import on_each
from appliance.engine.opened_decoder import OpenedDecoder
from appliance.errors import CapacityError, UnsupportedError
from tests.engine.conftest import OpenChat

MIB = 1 << 20
FIT = Fit(precision="fp16", weights=60 * MIB, slot=4 * MIB, memory=1 << 40)
NEEDED = 64 * MIB + RESERVE_BYTES


@dataclass
class Opening:
    """Opens a decoder over memory of a device, and keeps count of what was given back."""

    decoder: OpenedDecoder
    capacities: dict[int, int] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)
    opened: list[Device] = field(default_factory=list)

    def on(self, devices: Sequence[Device], first: OpenedDecoder | None) -> OpenedDecoder:
        (device,) = devices
        error = self.errors.get(len(self.opened))
        capacity = self.capacities.get(len(self.opened), 128)
        self.opened.append(device)
        if error is not None:
            raise error
        shape = CacheShape(2, capacity, 8)
        refuse_shorter(shape, first)
        address = device.allocate(MIB)
        return OpenedDecoder(
            self.decoder.runner, shape, EngineSettings(), False, lambda: device.release(address)
        )


@pytest.fixture
def opening(open_chat: OpenChat) -> Opening:
    chat = open_chat()
    runner = chat.engine._runner
    return Opening(OpenedDecoder(runner, chat.cache_shape, EngineSettings(), False, chat.close))


def devices(*free: int) -> list[HostDevice]:
    return [HostDevice(size) for size in free]


def used(each: list[HostDevice], *free: int) -> list[int]:
    return [size - device.free_bytes() for device, size in zip(each, free, strict=True)]


def test_it_is_on_every_gpu_that_it_leaves_half_of(opening: Opening) -> None:
    free = 2 * NEEDED, 2 * NEEDED, 2 * NEEDED - 1, 9 * NEEDED
    gpus = devices(*free)
    assert len(on_each(opening.on, FIT, gpus)) == 3
    assert used(gpus, *free) == [MIB, MIB, 0, MIB]


def test_it_is_on_the_first_however_little_that_leaves(opening: Opening) -> None:
    assert len(on_each(opening.on, FIT, devices(NEEDED, NEEDED - 1))) == 1


@pytest.mark.parametrize("error", [CapacityError("full"), UnsupportedError("broken")])
def test_a_gpu_that_cannot_take_it_is_left_out(opening: Opening, error: Exception) -> None:
    opening.errors[1] = error
    free = (9 * NEEDED,) * 3
    gpus = devices(*free)
    assert len(on_each(opening.on, FIT, gpus)) == 2
    assert used(gpus, *free) == [MIB, 0, MIB]


@pytest.mark.parametrize("error", [CapacityError("full"), UnsupportedError("broken")])
def test_one_that_the_first_cannot_take_is_refused(opening: Opening, error: Exception) -> None:
    opening.errors[0] = error
    with pytest.raises(type(error)):
        on_each(opening.on, FIT, devices(9 * NEEDED, 9 * NEEDED))
    assert len(opening.opened) == 1


def test_one_in_stages_is_on_as_many_as_it_was_cut_for(opening: Opening) -> None:
    gpus = devices(*(9 * NEEDED,) * 5)
    cut = msgspec.structs.replace(FIT, gpus=2)
    taken: list[list[Device]] = []

    def on_two(those: Sequence[Device], first: OpenedDecoder | None) -> OpenedDecoder:
        taken.append([*those])
        return opening.on(those[:1], first)

    assert len(on_each(on_two, cut, gpus)) == 2
    assert taken == [gpus[:2], gpus[2:4]]
    with pytest.raises(UnsupportedError, match="compiled for 2 GPUs, and there are 1") as caught:
        on_each(on_two, cut, gpus[:1])
    assert caught.value.code == "gpus_missing"


def test_all_give_the_same_context(opening: Opening) -> None:
    opening.capacities |= {1: 127, 2: 129}
    free = (9 * NEEDED,) * 3
    gpus = devices(*free)
    found = on_each(opening.on, FIT, gpus)
    assert [decoder.shape.capacity for decoder in found] == [128, 129]
    assert used(gpus, *free) == [MIB, 0, MIB]


def test_what_fails_half_way_gives_everything_back(opening: Opening) -> None:
    opening.errors[2] = RuntimeError("a fault of ours")
    free = (9 * NEEDED,) * 3
    gpus = devices(*free)
    with pytest.raises(RuntimeError):
        on_each(opening.on, FIT, gpus)
    assert used(gpus, *free) == [0, 0, 0]
