"""The C2SP tlog-tiles layout: names and bytes of tiles and entry bundles, and how to read them.

Owns paths such as `tile/0/x001/234` and `tile/entries/000.p/17` and the two encodings. Refuses
to write anything; writing in the right order is the tree's business. c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from appliance.audit.merkle import HASH_BYTES, root_of_hashes
from appliance.audit.regular import read_regular
from appliance.errors import AuditError

TILE_WIDTH = 256
TILE_LEVELS = 8
"""Tree levels that one tile spans: 2 ** 8 == TILE_WIDTH."""
ENTRIES = "entries"
MAX_TILE_BYTES = TILE_WIDTH * (2 + 0xFFFF)
"""The largest bundle that the layout can express; tiles of hashes are smaller."""

_NAME = re.compile(
    r"tile/(?P<level>entries|0|[1-5]?[0-9]|6[0-3])"
    r"/(?P<index>(?:x[0-9]{3}/)*[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)
_LENGTH = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class Tile:
    """One resource of the log. `level` -1 is an entry bundle; `width` 256 is a full one."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """Path relative to the log's directory."""
        name = f"tile/{ENTRIES if self.level < 0 else self.level}/{_index_path(self.index)}"
        return name if self.width == TILE_WIDTH else f"{name}.p/{self.width}"

    @property
    def partial_directory(self) -> str:
        """Where the partial versions of this tile are."""
        return Tile(self.level, self.index).path + ".p"


def parse_path(path: str) -> Tile | None:
    """The tile that `path` names; None if it is not exactly such a name."""
    match = _NAME.fullmatch(path)
    if match is None:
        return None
    level = -1 if match["level"] == ENTRIES else int(match["level"])
    index = int(match["index"].replace("x", "").replace("/", ""))
    tile = Tile(level, index, int(match["width"] or TILE_WIDTH))
    return tile if tile.path == path else None


def tiles_of(size: int) -> Iterator[tuple[int, int, int]]:
    """(level, full tiles, width of the partial tile or 0) for each level of a tree of `size`."""
    level = 0
    while size:
        yield level, size // TILE_WIDTH, size % TILE_WIDTH
        size //= TILE_WIDTH
        level += 1


def encode_tile(hashes: Sequence[bytes]) -> bytes:
    return b"".join(hashes)


def decode_tile(data: bytes, width: int) -> list[bytes]:
    """The hashes of a tile. Raises AuditError unless there are exactly `width`."""
    if len(data) != width * HASH_BYTES:
        raise AuditError(f"a tile of width {width} has {len(data)} bytes")
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


def encode_bundle(leaves: Sequence[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(leaf)) + leaf for leaf in leaves)


def decode_bundle(data: bytes, width: int) -> list[bytes]:
    """The leaves of an entry bundle. Raises AuditError unless there are exactly `width`."""
    leaves: list[bytes] = []
    offset = 0
    while offset < len(data):
        start = offset + _LENGTH.size
        if start > len(data):
            raise AuditError("an entry bundle ends inside a length")
        offset = start + _LENGTH.unpack_from(data, offset)[0]
        if offset > len(data):
            raise AuditError("an entry bundle ends inside an entry")
        leaves.append(data[start:offset])
    if len(leaves) != width:
        raise AuditError(f"an entry bundle of width {width} has {len(leaves)} entries")
    return leaves


def read_tile(directory: Path, tile: Tile) -> bytes:
    """The bytes of `tile`, taken from the full tile if the partial one is gone.

    A log may delete a partial tile once the full one exists. Raises AuditError naming the path.
    """
    try:
        return read_regular(directory / tile.path, MAX_TILE_BYTES)
    except OSError as error:
        if tile.width == TILE_WIDTH or not isinstance(error, FileNotFoundError):
            raise _unreadable(tile, error) from error
    full = Tile(tile.level, tile.index)
    try:
        data = read_regular(directory / full.path, MAX_TILE_BYTES)
    except OSError as error:
        raise _unreadable(tile, error) from error
    if tile.level >= 0:
        return data[: tile.width * HASH_BYTES]
    return encode_bundle(decode_bundle(data, TILE_WIDTH)[: tile.width])


class TileReader:
    """A `NodeReader` over the tiles of a log of `size` entries. Keeps a few tiles in memory."""

    def __init__(self, directory: Path, size: int) -> None:
        self._directory = directory
        self._size = size
        self._hashes = lru_cache(maxsize=64)(self._read)

    def __call__(self, level: int, index: int) -> bytes:
        """Hash of a complete subtree. Raises AuditError if its tile cannot be read."""
        tile_level, height = divmod(level, TILE_LEVELS)
        first = index << height
        tile_index, offset = divmod(first, TILE_WIDTH)
        hashes = self._hashes(tile_level, tile_index)
        return root_of_hashes(hashes[offset : offset + (1 << height)])

    def leaves(self, index: int) -> list[bytes]:
        """The entries of bundle `index`, as far as this size has them. Raises AuditError."""
        width = min(TILE_WIDTH, self._size - index * TILE_WIDTH)
        assert width > 0, "the bundle lies beyond the tree"
        return decode_bundle(read_tile(self._directory, Tile(-1, index, width)), width)

    def _read(self, level: int, index: int) -> list[bytes]:
        width = min(TILE_WIDTH, (self._size >> TILE_LEVELS * level) - index * TILE_WIDTH)
        assert width > 0, "the tile lies beyond the tree"
        return decode_tile(read_tile(self._directory, Tile(level, index, width)), width)


def _index_path(index: int) -> str:
    digits = f"{index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    parts = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    return "/".join([*("x" + part for part in parts[:-1]), parts[-1]])


def _unreadable(tile: Tile, error: OSError) -> AuditError:
    return AuditError(
        f"{tile.path} cannot be read: {error.strerror}",
        path=tile.path,
        hint="restore the file from a backup of the audit log",
    )
