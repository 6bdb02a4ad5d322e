"""Deleting old records and keeping their proofs.

Owns what may go: whole entry bundles, oldest first, in which every record is older than asked, of
which no request is still open, and which nobody needs any more (the caller's floor). The tiles of
hashes stay, so the root can still be computed from them, every checkpoint still verifies, and a
record that somebody kept elsewhere can still be proven. Refuses to delete before a PRUNE that says
so is signed.
"""

from __future__ import annotations

from pathlib import Path

from appliance.audit.event import decode_leaf
from appliance.audit.tiles import TILE_WIDTH, Tile, TileReader
from appliance.fsops import fsync_dir


def first_kept(directory: Path, size: int) -> int:
    """Number of the first record that is still there, of a log of `size` records.

    Bundles are deleted in order, so those that are there are all behind those that are not.
    """
    low, high = 0, size // TILE_WIDTH
    while low < high:
        middle = (low + high) // 2
        if (directory / Tile(-1, middle).path).exists():
            high = middle
        else:
            low = middle + 1
    return low * TILE_WIDTH


def boundary(directory: Path, size: int, before: str, floor: int) -> int:
    """The first record to keep, so that no record is deleted that is at or after the time `before`
    or has the number `floor` or a higher one. Raises AuditError."""
    reader = TileReader(directory, size)
    kept = first_kept(directory, size)
    while kept + TILE_WIDTH <= min(size, floor):
        leaves = reader.leaves(kept // TILE_WIDTH)
        if any(decode_leaf(leaf).t_utc >= before for leaf in leaves):
            break
        kept += TILE_WIDTH
    return kept


def delete(directory: Path, start: int, end: int) -> None:
    """Delete the bundles of the records from `start` to `end`, in order. Raises OSError."""
    parents: set[Path] = set()
    for index in range(start // TILE_WIDTH, end // TILE_WIDTH):
        path = directory / Tile(-1, index).path
        path.unlink(missing_ok=True)
        parents.add(path.parent)
    for parent in sorted(parents, reverse=True):
        fsync_dir(parent)
