"""On which GPUs a model is loaded (docs/decisions/0272-several-gpus.md). Owns the rule alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Protocol, TypeVar

from appliance.compiler.memory import needed
from appliance.compiler.record import Fit
from appliance.engine.device.device import Device
from appliance.errors import CapacityError, UnsupportedError

_log = logging.getLogger(__name__)


class Opened(Protocol):
    """A model on one GPU."""

    @property
    def close(self) -> Callable[[], None]:
        """Gives back what it took."""
        ...


Model = TypeVar("Model", bound=Opened)


def on_each(
    open_on: Callable[[Device, Model | None], Model], fit: Fit, devices: Iterable[Device]
) -> list[Model]:
    """The model on the first of `devices`, and on each other of whose free memory it takes less
    than half: the rest is for models that are loaded later.

    Args:
        open_on: opens it on a device. Is given what was opened on the first one, and raises
            CapacityError where the other would not be as good.
        fit: what it takes.

    Raises UnsupportedError, CapacityError if it cannot be opened on the first. Others on which it
    cannot be are left out.
    """
    first, *others = devices
    with ExitStack() as made:
        opened = [open_on(first, None)]
        made.callback(opened[0].close)
        for device in others:
            if 2 * needed(fit) > device.free_bytes():
                continue
            try:
                another = open_on(device, opened[0])
            except (CapacityError, UnsupportedError) as error:
                _log.warning("GPU %d is left out: %s", device.number, error.message)
                continue
            opened.append(another)
            made.callback(another.close)
        made.pop_all()
    return opened
