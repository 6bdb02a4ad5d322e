"""The right edge of the tree: everything that the next record can still change.

Owns, in memory, the partial tile of each level and the leaves of the partial bundle: at most
255 hashes a level and 255 leaves, whatever the size of the log. Refuses to touch the disk
except to load itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from appliance.audit.merkle import EMPTY_ROOT, leaf_hash, node_hash, root_of_hashes
from appliance.audit.tiles import (
    TILE_WIDTH,
    Tile,
    decode_bundle,
    decode_tile,
    encode_bundle,
    encode_tile,
    read_tile,
    tiles_of,
)
from appliance.errors import AuditError


class Edge:
    """The edge of a tree of `size` records; begins empty."""

    def __init__(self) -> None:
        self.size = 0
        self._levels: list[list[bytes]] = []
        self._leaves: list[bytes] = []

    @classmethod
    def load(cls, directory: Path, size: int) -> Edge:
        """Read the edge of the tree of `size` from its tiles. Raises AuditError."""
        edge = cls()
        edge.size = size
        for level, index, width in tiles_of(size):
            tile = Tile(level, index, width)
            data = read_tile(directory, tile) if width else b""
            edge._levels.append(decode_tile(data, width))
        width = size % TILE_WIDTH
        if width:
            bundle = Tile(-1, size // TILE_WIDTH, width)
            edge._leaves = decode_bundle(read_tile(directory, bundle), width)
        if [leaf_hash(leaf) for leaf in edge._leaves] != (edge._levels or [[]])[0]:
            raise AuditError(
                "the newest entry bundle and tile disagree", path=Tile(0, size // TILE_WIDTH).path
            )
        return edge

    def add(self, leaf: bytes) -> list[tuple[Tile, bytes]]:
        """Append `leaf`; returns the tiles and the bundle that became full by it."""
        self._leaves.append(leaf)
        self.size += 1
        if len(self._leaves) < TILE_WIDTH:
            self._level(0).append(leaf_hash(leaf))
            return []
        bundle = Tile(-1, self.size // TILE_WIDTH - 1)
        full = [(bundle, encode_bundle(self._leaves))]
        self._leaves = []
        return full + self._push(0, leaf_hash(leaf))

    def partials(self) -> Iterator[tuple[Tile, bytes]]:
        """The tiles and the bundle that are not full at this size."""
        for level, index, width in tiles_of(self.size):
            if width:
                yield Tile(level, index, width), encode_tile(self._levels[level])
        if self._leaves:
            tile = Tile(-1, self.size // TILE_WIDTH, len(self._leaves))
            yield tile, encode_bundle(self._leaves)

    def root(self) -> bytes:
        """The root hash at this size."""
        root: bytes | None = None
        for hashes in self._levels:
            for subtree in _complete_subtrees(hashes):
                root = subtree if root is None else node_hash(subtree, root)
        return EMPTY_ROOT if root is None else root

    def _push(self, level: int, value: bytes) -> list[tuple[Tile, bytes]]:
        hashes = self._level(level)
        hashes.append(value)
        if len(hashes) < TILE_WIDTH:
            return []
        tile = Tile(level, self.size // TILE_WIDTH ** (level + 1) - 1)
        self._levels[level] = []
        return [(tile, encode_tile(hashes)), *self._push(level + 1, root_of_hashes(hashes))]

    def _level(self, level: int) -> list[bytes]:
        if level == len(self._levels):
            self._levels.append([])
        return self._levels[level]


def _complete_subtrees(hashes: list[bytes]) -> Iterator[bytes]:
    """Roots of the complete subtrees that `hashes` decompose into, the rightmost first."""
    end = len(hashes)
    while end:
        width = end & -end
        yield root_of_hashes(hashes[end - width : end])
        end -= width
