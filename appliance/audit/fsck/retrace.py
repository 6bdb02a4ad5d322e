"""Computing the tree again from the leaves, and comparing every tile on the way.

Owns its own way to the root, other than the writer's: a stack of complete binary subtrees that
merge like the digits of a binary counter. Memory is one tile per level.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.audit.merkle import EMPTY_ROOT, leaf_hash, node_hash
from appliance.audit.tiles import TILE_LEVELS, TILE_WIDTH, Tile

Compare = Callable[[Tile, list[bytes]], None]
"""Called with each tile's recomputed hashes when it is full."""


class Retrace:
    """Push every leaf in order; ask for the root at any time."""

    def __init__(self, compare: Compare) -> None:
        self._compare = compare
        self._stack: list[tuple[int, bytes]] = []
        self._rows: dict[int, list[bytes]] = {}
        self.size = 0

    def push(self, leaf: bytes) -> None:
        self.push_hash(leaf_hash(leaf))

    def push_hash(self, value: bytes) -> None:
        """Push a leaf that is known by its hash only."""
        self.size += 1
        height = 0
        self._note(height, value)
        while self._stack and self._stack[-1][0] == height:
            value = node_hash(self._stack.pop()[1], value)
            height += 1
            self._note(height, value)
        self._stack.append((height, value))

    def root(self) -> bytes:
        """Root hash over what was pushed."""
        if not self._stack:
            return EMPTY_ROOT
        root = self._stack[-1][1]
        for _, value in reversed(self._stack[:-1]):
            root = node_hash(value, root)
        return root

    def partial_tiles(self) -> dict[int, list[bytes]]:
        """By level, the hashes of the tile that is not full yet."""
        return {level: hashes for level, hashes in self._rows.items() if hashes}

    def _note(self, height: int, value: bytes) -> None:
        """Keep a subtree's hash if its height is one that tiles show."""
        level, rest = divmod(height, TILE_LEVELS)
        if rest:
            return
        row = self._rows.setdefault(level, [])
        row.append(value)
        if len(row) == TILE_WIDTH:
            self._rows[level] = []
            self._compare(Tile(level, (self.size >> height) // TILE_WIDTH - 1), row)
