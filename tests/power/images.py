"""What a power cut may leave of a recorded disk.

Owns the rule: writes that a flush covered are there; of those after it, any choice may be, whole
or torn at a sector, and an earlier one may be missing where a later one is there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.power.disk import FLUSH, ORDER, WRITE

CHOICES = ("none", "all", "some writes", "some sectors")


@dataclass(frozen=True, slots=True)
class Order:
    """One write or flush; `at` is the monotonic time of its arrival in nanoseconds."""

    kind: int
    at: int
    offset: int
    data: bytes


def read_orders(journal: Path) -> Iterator[Order]:
    """All orders, in the sequence of their arrival."""
    with journal.open("rb") as file:
        while header := file.read(ORDER.size):
            kind, at, offset, length = ORDER.unpack(header)
            yield Order(kind, at, offset, file.read(length))


@dataclass(frozen=True, slots=True)
class Cut:
    """The power went before the order that arrived at `at`; `lost` says what was chosen."""

    at: int
    choice: str
    image: bytearray


class Recording:
    """A disk's first bytes and all that followed; a write of `sector` bytes is not torn."""

    def __init__(self, image: Path, journal: Path, sector: int) -> None:
        self._image = image
        self._sector = sector
        self.orders = list(read_orders(journal))

    def cuts(self, count: int, *, after: int, before: int, seed: int) -> Iterator[Cut]:
        """`count` images of moments between two times; the choices follow from `seed`."""
        rng = random.Random(seed)
        eligible = [i for i, order in enumerate(self.orders) if after < order.at < before]
        points = sorted(rng.choices(eligible, k=count))
        durable = bytearray(self._image.read_bytes())
        waiting: list[Order] = []
        covered = done = 0
        for point in points:
            for order in self.orders[done:point]:
                if order.kind == WRITE:
                    waiting.append(order)
                elif order.kind == FLUSH:
                    for old in waiting[: order.offset - covered]:
                        _apply(durable, old.offset, old.data)
                    del waiting[: order.offset - covered]
                    covered = max(covered, order.offset)
            done = point
            choice = rng.choice(CHOICES)
            yield Cut(self.orders[point].at, choice, self._choose(durable, waiting, choice, rng))

    def _choose(
        self, durable: bytearray, waiting: list[Order], choice: str, rng: random.Random
    ) -> bytearray:
        image, sector = bytearray(durable), self._sector
        for order in waiting:
            if choice == "all" or (choice == "some writes" and rng.random() < 0.5):
                _apply(image, order.offset, order.data)
            elif choice == "some sectors":
                for start in range(0, len(order.data), sector):
                    if rng.random() < 0.5:
                        _apply(image, order.offset + start, order.data[start : start + sector])
        return image


def _apply(image: bytearray, offset: int, data: bytes) -> None:
    image[offset : offset + len(data)] = data
