"""Checks on the files under `tile/`: each one holds what the leaves say, and no other is there.

Owns reading tiles for comparison and the walk that looks for files too many. Partial tiles of
earlier checkpoints may lie beside the newer ones; each must be a beginning of its successor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from appliance.audit.fsck.report import Report
from appliance.audit.merkle import HASH_BYTES
from appliance.audit.regular import read_regular
from appliance.audit.tiles import (
    MAX_TILE_BYTES,
    TILE_LEVELS,
    TILE_WIDTH,
    Tile,
    encode_tile,
    parse_path,
    read_tile,
)
from appliance.errors import AuditError

TEMPORARY_SUFFIX = ".tmp"


class TileFiles:
    """The tile files of a log whose tree on disk has `size` records."""

    def __init__(self, directory: Path, size: int, report: Report) -> None:
        self._directory = directory
        self._size = size
        self._report = report
        self._beyond: dict[tuple[int, int], bytes] = {}
        self._missing: set[tuple[int, int]] = set()
        """Tiles of which the version that must be there cannot be read."""

    def read(self, tile: Tile) -> bytes | None:
        """The bytes of a tile that must be there; None, and a finding, if it is not."""
        try:
            return read_tile(self._directory, tile)
        except AuditError as error:
            if (tile.level, tile.index) not in self._missing:
                self._missing.add((tile.level, tile.index))
                self._report.add("tile_missing", error.message, path=tile.path)
            return None

    def exists(self, tile: Tile) -> bool:
        """Whether anything has that name."""
        return os.path.lexists(self._directory / tile.path)

    def compare(self, tile: Tile, hashes: Sequence[bytes]) -> None:
        """Check a recomputed tile against its file, as far as the tree on disk covers it."""
        if self._covered(tile) < tile.width:
            self.expect_beyond(tile, encode_tile(hashes))
            return
        stored = self.read(tile)
        if stored is not None and stored != encode_tile(hashes):
            self._report.add(
                "tile_wrong",
                f"hash {_first_difference(stored, hashes)} is not that of the records below it",
                path=tile.path,
            )

    def expect_beyond(self, tile: Tile, data: bytes) -> None:
        """Remember what a tile would hold that reaches beyond the tree on disk: a publication
        that was under way may have left it."""
        self._beyond[tile.level, tile.index] = data

    def check_names(self, *, still_growing: bool) -> None:
        """Look at every file. `still_growing`: files beyond what is known are another's work."""
        for path in _walk(self._directory / "tile"):
            name = path.relative_to(self._directory).as_posix()
            if name.endswith(TEMPORARY_SUFFIX):
                continue
            tile = parse_path(name)
            if tile is None or path.is_symlink() or not path.is_file():
                if os.path.lexists(path):
                    self._report.add("file_unexpected", "this is not part of a log", path=name)
            elif tile.width != min(TILE_WIDTH, self._covered(tile)):  # else it was compared
                self._check_extra(path, name, tile, still_growing=still_growing)

    def _check_extra(self, path: Path, name: str, tile: Tile, *, still_growing: bool) -> None:
        """A partial tile, or one beyond the tree on disk: is it a beginning of what is known?"""
        try:
            data = read_regular(path, MAX_TILE_BYTES)
        except FileNotFoundError:
            return  # a full tile took its place meanwhile
        except OSError as error:
            self._report.add("file_unreadable", str(error.strerror), path=name)
            return
        known = self._known(tile)
        if known is None or len(known) < len(data):
            missing = (tile.level, tile.index) in self._missing  # and an older version is left
            if not still_growing and not missing:
                self._report.add("file_unexpected", "no record belongs to this tile", path=name)
        elif not known.startswith(data) or _count(tile, data) != tile.width:
            self._report.add("tile_wrong", "it contradicts the newer version of it", path=name)

    def _known(self, tile: Tile) -> bytes | None:
        if (tile.level, tile.index) in self._beyond:
            return self._beyond[tile.level, tile.index]
        covered = min(TILE_WIDTH, self._covered(tile))
        try:
            return read_tile(self._directory, Tile(tile.level, tile.index, covered))
        except AuditError:
            return None

    def _covered(self, tile: Tile) -> int:
        """How many of the tile's places the tree on disk fills."""
        return (self._size >> TILE_LEVELS * max(tile.level, 0)) - tile.index * TILE_WIDTH


def _count(tile: Tile, data: bytes) -> int:
    """Hashes or entries in `data`, -1 if it ends inside one."""
    if tile.level >= 0:
        return len(data) // HASH_BYTES if len(data) % HASH_BYTES == 0 else -1
    count = offset = 0
    while offset < len(data):
        offset += 2 + int.from_bytes(data[offset : offset + 2], "big")
        count += 1
    return count if offset == len(data) else -1


def _first_difference(stored: bytes, hashes: Sequence[bytes]) -> int:
    for i, value in enumerate(hashes):
        if stored[i * HASH_BYTES : (i + 1) * HASH_BYTES] != value:
            return i
    return len(hashes)


def _walk(directory: Path) -> Iterator[Path]:
    """Every file below `directory`, one directory's names in memory at a time."""
    try:
        with os.scandir(directory) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)
