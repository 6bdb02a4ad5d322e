"""The tree's hashes and proofs are those of RFC 6962."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.audit.edge import Edge
from appliance.audit.fsck.retrace import Retrace
from appliance.audit.merkle import (
    EMPTY_ROOT,
    NodeReader,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_at,
    root_of_hashes,
    verify_consistency,
    verify_inclusion,
)
from appliance.errors import AuditError

# The inputs and roots of the reference implementation's tests (certificate-transparency).
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def plain_root(leaves: Sequence[bytes]) -> bytes:
    """MTH as RFC 6962 section 2.1 writes it down."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + plain_root(leaves[:k]) + plain_root(leaves[k:])).digest()


def node_reader(leaves: Sequence[bytes]) -> NodeReader:
    def node(level: int, index: int) -> bytes:
        part = leaves[index << level : (index + 1) << level]
        assert len(part) == 1 << level, "only complete subtrees are asked for"
        return plain_root(part)

    return node


def numbered(size: int) -> list[bytes]:
    return [str(i).encode() for i in range(size)]


@pytest.mark.parametrize("size", range(1, 9))
def test_the_reference_vectors_have_the_reference_roots(size: int) -> None:
    leaves = LEAVES[:size]
    root = bytes.fromhex(ROOTS[size - 1])
    assert root_of_hashes([leaf_hash(leaf) for leaf in leaves]) == root
    assert root_at(size, node_reader(LEAVES)) == root


def test_the_empty_tree_has_the_empty_hash() -> None:
    assert root_of_hashes([]) == EMPTY_ROOT == plain_root([])
    assert Edge().root() == EMPTY_ROOT == Retrace(lambda tile, hashes: None).root()


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512, 700, 65_536 + 256 + 3])
def test_the_writer_and_the_checker_come_to_the_same_root_on_their_own_ways(size: int) -> None:
    edge, retrace = Edge(), Retrace(lambda tile, hashes: None)
    leaves = numbered(size)
    for leaf in leaves:
        edge.add(leaf)
        retrace.push(leaf)
    assert edge.root() == retrace.root() == root_of_hashes([leaf_hash(leaf) for leaf in leaves])


@given(st.lists(st.binary(max_size=4), max_size=80))
def test_every_way_to_the_root_is_that_of_the_rfc(leaves: list[bytes]) -> None:
    edge = Edge()
    for leaf in leaves:
        edge.add(leaf)
    root = plain_root(leaves)
    assert edge.root() == root
    assert root_of_hashes([leaf_hash(leaf) for leaf in leaves]) == root
    assert root_at(len(leaves), node_reader(leaves)) == root


@given(st.data())
def test_an_inclusion_proof_verifies_and_no_altered_one_does(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 100))
    index = data.draw(st.integers(0, size - 1))
    leaves = numbered(size)
    root = plain_root(leaves)
    proof = inclusion_proof(index, size, node_reader(leaves))
    leaf = leaf_hash(leaves[index])
    verify_inclusion(leaf, index, size, proof, root)

    other = data.draw(
        st.integers(0, size - 1).filter(lambda i: i != index) if size > 1 else st.just(-1)
    )
    for wrong in altered(proof, data):
        with pytest.raises(AuditError):
            verify_inclusion(leaf, index, size, wrong, root)
    with pytest.raises(AuditError):
        verify_inclusion(leaf, other, size, proof, root)
    with pytest.raises(AuditError):
        verify_inclusion(leaf_hash(b"another"), index, size, proof, root)


@given(st.data())
def test_a_consistency_proof_verifies_and_no_altered_one_does(data: st.DataObject) -> None:
    second = data.draw(st.integers(1, 100))
    first = data.draw(st.integers(1, second))
    leaves = numbered(second)
    roots = plain_root(leaves[:first]), plain_root(leaves)
    proof = consistency_proof(first, second, node_reader(leaves))
    verify_consistency(first, second, proof, *roots)

    for wrong in altered(proof, data):
        with pytest.raises(AuditError):
            verify_consistency(first, second, wrong, *roots)
    with pytest.raises(AuditError):
        verify_consistency(first, second, proof, leaf_hash(b"x"), roots[1])
    with pytest.raises(AuditError):
        verify_consistency(first, second, proof, roots[0], leaf_hash(b"x"))


def altered(proof: list[bytes], data: st.DataObject) -> list[list[bytes]]:
    changed = [[*proof, bytes(32)]]
    if proof:
        i = data.draw(st.integers(0, len(proof) - 1))
        flipped = bytes([proof[i][0] ^ 1]) + proof[i][1:]
        changed += [proof[:i] + proof[i + 1 :], [*proof[:i], flipped, *proof[i + 1 :]]]
    return changed


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_a_leaf_outside_the_tree_has_no_proof(index: int, size: int) -> None:
    with pytest.raises(AuditError):
        inclusion_proof(index, size, node_reader(numbered(3)))
    with pytest.raises(AuditError):
        verify_inclusion(bytes(32), index, size, [], bytes(32))


@pytest.mark.parametrize(("first", "second"), [(0, 3), (4, 3)])
def test_there_is_no_consistency_with_nothing_or_with_the_future(first: int, second: int) -> None:
    with pytest.raises(AuditError):
        consistency_proof(first, second, node_reader(numbered(3)))
    with pytest.raises(AuditError):
        verify_consistency(first, second, [], bytes(32), bytes(32))
