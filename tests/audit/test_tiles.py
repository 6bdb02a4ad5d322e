"""Names and bytes of tiles are those of c2sp.org/tlog-tiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.audit.event import Heartbeat
from appliance.audit.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_at,
    verify_consistency,
    verify_inclusion,
)
from appliance.audit.tiles import (
    Tile,
    TileReader,
    decode_bundle,
    decode_tile,
    encode_bundle,
    parse_path,
    tiles_of,
)
from appliance.errors import AuditError
from tests.audit.sample import exchange, open_log


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 999), "tile/0/999"),
        (Tile(0, 1000), "tile/0/x001/000"),
        (Tile(3, 1234067), "tile/3/x001/x234/067"),
        (Tile(63, 0, 1), "tile/63/000.p/1"),
        (Tile(-1, 273, 112), "tile/entries/273.p/112"),
    ],
)
def test_a_tile_has_the_name_that_the_specification_gives_it(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert parse_path(path) == tile


@given(st.integers(-1, 63), st.integers(0, 2**40), st.integers(1, 256))
def test_a_name_reads_back_as_the_same_tile(level: int, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    assert parse_path(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile",
        "tile/0",
        "tile/0/0",
        "tile/00/000",
        "tile/64/000",
        "tile/0/x000/001",
        "tile/0/001/002",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/entries/../000",
        "tile/0/000\n",
        "tile/0/\u0660\u0660\u0660",
    ],
)
def test_a_second_spelling_of_a_name_is_not_a_name(path: str) -> None:
    assert parse_path(path) is None


def test_a_tree_of_70000_has_the_tiles_of_the_specification_s_example() -> None:
    assert list(tiles_of(70_000)) == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]
    assert list(tiles_of(256)) == [(0, 1, 0), (1, 0, 1)]
    assert list(tiles_of(0)) == []


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_a_bundle_reads_back_as_its_leaves(leaves: list[bytes]) -> None:
    assert decode_bundle(encode_bundle(leaves), len(leaves)) == leaves


def test_a_bundle_or_tile_of_another_width_is_refused() -> None:
    data = encode_bundle([b"one", b"two"])
    for wrong in (data[:-1], data[:6], data + b"\x00", b""):
        with pytest.raises(AuditError):
            decode_bundle(wrong, 2)
    with pytest.raises(AuditError):
        decode_tile(bytes(33), 1)


def test_proofs_are_built_from_the_tiles_on_disk(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([event for i in range(300) for event in exchange(i)])
        old = log.checkpoint()
        log.append([Heartbeat() for _ in range(700)])
        new = log.checkpoint()
    reader = TileReader(tmp_path / "audit", new.size)
    assert root_at(old.size, reader) == old.root
    verify_consistency(
        old.size,
        new.size,
        consistency_proof(old.size, new.size, reader),
        old.root,
        new.root,
    )
    for index in (0, 255, 256, 599, 600, new.size - 1):
        leaf = reader.leaves(index // 256)[index % 256]
        proof = inclusion_proof(index, new.size, reader)
        verify_inclusion(leaf_hash(leaf), index, new.size, proof, new.root)
