"""On which GPUs a model is loaded (docs/decisions/0272-several-gpus.md,
0296-a-model-over-several-gpus.md). Owns the rule alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Protocol, TypeVar

from appliance.compiler.memory import needed
from appliance.compiler.record import Fit
from appliance.engine.device.device import Device
from appliance.errors import CapacityError, UnsupportedError

_log = logging.getLogger(__name__)


class Opened(Protocol):
    """A model on one GPU, or on as many as it was cut for."""

    @property
    def close(self) -> Callable[[], None]:
        """Gives back what it took."""
        ...


Model = TypeVar("Model", bound=Opened)


def on_each(
    open_on: Callable[[Sequence[Device], Model | None], Model],
    fit: Fit,
    devices: Sequence[Device],
) -> list[Model]:
    """The model on the first of `devices`, and on each other of whose free memory it takes less
    than half: the rest is for models that are loaded later. One that was cut for several GPUs is on
    as many at a time.

    Args:
        open_on: opens it, a stage on each of the devices that it is given. Is given what was
            opened first, too, and raises CapacityError where the other would not be as good.
        fit: what it takes of each.

    Raises UnsupportedError, CapacityError if it cannot be opened on the first. Others on which it
    cannot be are left out.
    """
    first, *others = _together(devices, fit.gpus)
    with ExitStack() as made:
        opened = [open_on(first, None)]
        made.callback(opened[0].close)
        for those in others:
            if any(2 * needed(fit) > device.free_bytes() for device in those):
                continue
            try:
                another = open_on(those, opened[0])
            except (CapacityError, UnsupportedError) as error:
                left = ", ".join(str(device.number) for device in those)
                _log.warning("GPU %s is left out: %s", left, error.message)
                continue
            opened.append(another)
            made.callback(another.close)
        made.pop_all()
    return opened


def _together(devices: Sequence[Device], count: int) -> list[Sequence[Device]]:
    """`devices` in groups of `count`; fewer than that at the end are left over.

    Raises UnsupportedError if there is not one group.
    """
    if len(devices) < count:
        raise UnsupportedError(
            f"the model was compiled for {count} GPUs, and there are {len(devices)} to use",
            hint="`appliance models compile` compiles it for those that are there",
            code="gpus_missing",
        )
    return [devices[n : n + count] for n in range(0, len(devices) - count + 1, count)]
