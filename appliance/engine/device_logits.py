"""Logits that stay on the device: what was chosen there comes with them, the rest on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.engine.device import Device


@dataclass(frozen=True, slots=True)
class DeviceLogits:
    """Rows of logits, float32 [vocab] each, at `addresses`; valid until the next run.

    Attributes:
        greedy: the likeliest token of each row.
    """

    device: Device
    vocab: int
    addresses: Sequence[int]
    greedy: Sequence[int]

    def __len__(self) -> int:
        return len(self.addresses)

    def __getitem__(self, row: int) -> npt.NDArray[np.float32]:
        """A copy of the row [vocab]."""
        logits = np.empty(self.vocab, np.float32)
        self.device.read(self.addresses[row], logits)
        return logits
