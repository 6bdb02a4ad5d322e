"""The weights of all adapters that one model has loaded, as its graphs read them.

    downs[layer, target]   float32 [ranks, inner]     rows of the first adapter,
    ups[layer, target]     float32 [ranks, outer]     below them those of the second, ...

A bank never changes: adding and removing make another one, which the runner takes up between two
steps. A target that an adapter leaves alone costs it no rows. Where nobody has rows there is one
of zeros, since the graph wants one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from appliance.bundle.specs import AdapterTarget
from appliance.engine.slot_pool import Array

Place = tuple[int, str]
"""Number of a block, and name of a target."""


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """One adapter.

    Attributes:
        digest: of its bundle.
        rank: rows of each matrix.
        downs, ups: [rank, inner] and [rank, outer] of each place that it changes.
    """

    digest: str
    rank: int
    downs: Mapping[Place, Array]
    ups: Mapping[Place, Array]


class AdapterBank:
    """Adapters of a model with `layers` blocks and these `targets`."""

    def __init__(
        self,
        layers: int,
        targets: Sequence[AdapterTarget],
        adapters: Sequence[AdapterWeights] = (),
    ) -> None:
        self.layers = layers
        self.targets = tuple(targets)
        self._rows: dict[tuple[str, str], slice] = {}
        """Digest and target -> the adapter's rows."""
        self.ranks: dict[str, int] = {}
        """Rows of each target in all, at least one."""
        self._downs: dict[Place, Array] = {}
        self._ups: dict[Place, Array] = {}
        self._zeros: dict[str, tuple[Array, Array]] = {}
        for target in self.targets:
            self._stack(target, adapters)
        self._adapters = {adapter.digest: self._viewed(adapter) for adapter in adapters}

    @property
    def digests(self) -> frozenset[str]:
        """Of the adapters that are loaded."""
        return frozenset(self._adapters)

    def adding(self, adapter: AdapterWeights) -> AdapterBank:
        """A bank with this one, too."""
        kept = [a for digest, a in self._adapters.items() if digest != adapter.digest]
        return AdapterBank(self.layers, self.targets, [*kept, adapter])

    def without(self, digest: str) -> AdapterBank:
        """A bank without this one."""
        kept = [adapter for own, adapter in self._adapters.items() if own != digest]
        return AdapterBank(self.layers, self.targets, kept)

    def all(self, place: Place) -> tuple[Array, Array]:
        """Down [ranks, inner] and up [ranks, outer] of every adapter at a place."""
        return self._downs[place], self._ups[place]

    def one(self, digest: str, place: Place) -> tuple[Array, Array]:
        """Down and up of one adapter; a row of zeros if it leaves the target alone."""
        rows = self._rows.get((digest, place[1]))
        if rows is None:
            return self._zeros[place[1]]
        return self._downs[place][rows], self._ups[place][rows]

    def rows(self, digest: str, target: str) -> slice | None:
        """An adapter's rows of a target's; None if it leaves the target alone."""
        return self._rows.get((digest, target))

    def count(self, digest: str, target: str) -> int:
        """How many rows `one` has."""
        rows = self.rows(digest, target)
        return 1 if rows is None else rows.stop - rows.start

    def places(self) -> list[Place]:
        """Every place that an adapter may change."""
        return [(layer, target.name) for layer in range(self.layers) for target in self.targets]

    def _stack(self, target: AdapterTarget, adapters: Sequence[AdapterWeights]) -> None:
        name = target.name
        self._zeros[name] = (
            np.zeros((1, target.inner), np.float32),
            np.zeros((1, target.outer), np.float32),
        )
        rows = 0
        for adapter in adapters:
            if any(place[1] == name for place in adapter.downs):
                self._rows[adapter.digest, name] = slice(rows, rows + adapter.rank)
                rows += adapter.rank
        self.ranks[name] = max(rows, 1)
        for layer in range(self.layers):
            down = np.zeros((self.ranks[name], target.inner), np.float32)
            up = np.zeros((self.ranks[name], target.outer), np.float32)
            for adapter in adapters:
                own = self._rows.get((adapter.digest, name))
                if own is not None and (layer, name) in adapter.downs:
                    down[own] = adapter.downs[layer, name]
                    up[own] = adapter.ups[layer, name]
            self._downs[layer, name], self._ups[layer, name] = down, up

    def _viewed(self, adapter: AdapterWeights) -> AdapterWeights:
        """The adapter over the bank's memory, so that nothing is held twice."""
        pairs = {place: self.one(adapter.digest, place) for place in adapter.downs}
        return AdapterWeights(
            adapter.digest,
            adapter.rank,
            {place: down for place, (down, _) in pairs.items()},
            {place: up for place, (_, up) in pairs.items()},
        )
