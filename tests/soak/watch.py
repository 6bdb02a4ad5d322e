"""What the daemons hold, looked at every second from outside, and whether it grows.

Owns the samples and the judgement of growth. A process that is started anew starts from nothing, so
growth is judged within one life of a process: its last, once it is warm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from tests.soak.ground import Ground, children
from tests.soak.supervised import MODULES

MEMORY_BOUND = 0.25
"""MiB a minute, of memory that is not a file's."""
DESCRIPTOR_BOUND = 0.25
"""Descriptors a minute."""
_MOST_POINTS = 900
"""Of which slopes are taken in pairs."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One daemon, its helpers included, at one moment."""

    at: float
    """Seconds since the start of the watch."""
    process: int
    resident: float
    """MiB, files included."""
    anonymous: float
    """MiB that are not a file's: what leaks are made of."""
    descriptors: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Of one daemon's last life, from when it was warm."""

    seconds: float
    memory: float
    """MiB a minute."""
    descriptors: float
    """A minute."""
    low: float
    high: float
    """Of anonymous memory, MiB."""

    @property
    def grows(self) -> bool:
        return self.memory > MEMORY_BOUND or self.descriptors > DESCRIPTOR_BOUND


class Watch:
    """`start`, then `stop`."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.began = time.monotonic()
        self.samples: dict[str, list[Sample]] = {name: [] for name in MODULES}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            for name, samples in self.samples.items():
                found = self._look(name)
                if found is not None:
                    samples.append(found)

    def _look(self, name: str) -> Sample | None:
        pid = self._ground.process(name)
        if pid is None:
            return None
        try:
            held = [_held(each) for each in _family(pid)]
        except (OSError, StopIteration):
            return None  # it ended while it was looked at
        resident, anonymous, descriptors = (sum(each) for each in zip(*held, strict=True))
        at = time.monotonic() - self.began
        return Sample(at, pid, resident / 1024, anonymous / 1024, int(descriptors))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for child in children(pid):
        yield from _family(child)


def _held(pid: int) -> tuple[int, int, int]:
    """KiB resident, KiB anonymous, descriptors."""
    proc = Path(f"/proc/{pid}")
    rows = dict(row.split(":", 1) for row in (proc / "status").read_text().splitlines())
    resident, anonymous = (int(rows[name].split()[0]) for name in ("VmRSS", "RssAnon"))
    return resident, anonymous, len(list((proc / "fd").iterdir()))


def growth(samples: Sequence[Sample], warm_seconds: float) -> Growth:
    """Of the last process in `samples`, without its first `warm_seconds`."""
    lived = [sample for sample in samples if sample.process == samples[-1].process]
    warm = [sample for sample in lived if sample.at - lived[0].at >= warm_seconds]
    assert len(warm) > 1, "the last process did not live for long enough"
    minutes = [sample.at / 60 for sample in warm]
    held = _least(warm)
    memory = [sample.anonymous for sample in warm]
    return Growth(
        seconds=warm[-1].at - warm[0].at,
        memory=slope(minutes, memory),
        descriptors=slope([each.at / 60 for each in held], [float(h.descriptors) for h in held]),
        low=min(memory),
        high=max(memory),
    )


def _least(samples: Sequence[Sample]) -> list[Sample]:
    """Of each half minute the sample with the fewest descriptors: what is held besides connections,
    of which there are more when the machine is slow."""
    halves = groupby(samples, key=lambda sample: sample.at // 30)
    return [min(half, key=lambda sample: sample.descriptors) for _, half in halves]


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The median of the slopes between all pairs of points (Theil 1950, Sen 1968): what single
    peaks do not move."""
    step = -(-len(times) // _MOST_POINTS)
    x, y = np.asarray(times[::step]), np.asarray(values[::step])
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))
