"""Merkle tree hashing and proofs, RFC 6962 section 2.1, over SHA-256.

Owns hashes and nothing else: no files, no signatures. A tree is known by a `NodeReader`, which
returns the hash of any complete subtree; proofs are built from those and verified without one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from appliance.errors import AuditError

HASH_BYTES = 32

NodeReader = Callable[[int, int], bytes]
"""`node(level, index)`: hash of the complete subtree over leaves
[index << level, (index + 1) << level)."""

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of_hashes(hashes: Sequence[bytes]) -> bytes:
    """MTH over `hashes` as leaf hashes (or as roots of equally large complete subtrees)."""
    if not hashes:
        return EMPTY_ROOT
    level = list(hashes)
    while len(level) > 1:
        pairs = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[-1:] if len(level) % 2 else pairs
    return level[0]


def root_at(size: int, node: NodeReader) -> bytes:
    """The root of the tree's first `size` leaves."""
    return _range_hash(0, size, node) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, node: NodeReader) -> list[bytes]:
    """PATH(index, D[size]), RFC 6962 section 2.1.1: the hashes from a leaf up to the root."""
    if not 0 <= index < size:
        raise AuditError(f"there is no leaf {index} in a tree of size {size}")
    proof: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        split = start + _largest_power_below(end - start)
        if index < split:
            proof.append(_range_hash(split, end, node))
            end = split
        else:
            proof.append(_range_hash(start, split, node))
            start = split
    return proof[::-1]


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that the leaf hash `leaf` is number `index` under `root` (RFC 9162 section 2.1.3.2).

    Raises AuditError.
    """
    if not 0 <= index < size:
        raise AuditError(f"there is no leaf {index} in a tree of size {size}")
    position, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise AuditError("the inclusion proof is too long")
        if position & 1 or position == last:
            computed = node_hash(sibling, computed)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            computed = node_hash(computed, sibling)
        position >>= 1
        last >>= 1
    if last or computed != root:
        raise AuditError(f"the inclusion proof of leaf {index} does not lead to the root")


def consistency_proof(first: int, second: int, node: NodeReader) -> list[bytes]:
    """PROOF(first, D[second]), RFC 6962 section 2.1.2: the first tree is a prefix of the second."""
    if not 0 < first <= second:
        raise AuditError(f"there is no consistency proof from size {first} to {second}")
    proof: list[bytes] = []
    start, end, whole = 0, second, True
    while first != end:
        split = start + _largest_power_below(end - start)
        if first <= split:
            proof.append(_range_hash(split, end, node))
            end = split
        else:
            proof.append(_range_hash(start, split, node))
            start, whole = split, False
    if not whole:
        proof.append(_range_hash(start, end, node))
    return proof[::-1]


def verify_consistency(
    first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes
) -> None:
    """Check that the tree of size `first` is a prefix of that of size `second`.

    RFC 9162 section 2.1.4.2. Raises AuditError.
    """
    if not 0 < first <= second:
        raise AuditError(f"there is no consistency proof from size {first} to {second}")
    if first == second:
        if proof or first_root != second_root:
            raise AuditError("two trees of one size have different roots")
        return
    path = list(proof) if first & (first - 1) else [first_root, *proof]
    if not path:
        raise AuditError("the consistency proof is empty")
    position, last = first - 1, second - 1
    while position & 1:
        position >>= 1
        last >>= 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise AuditError("the consistency proof is too long")
        if position & 1 or position == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            new = node_hash(new, sibling)
        position >>= 1
        last >>= 1
    if last or old != first_root or new != second_root:
        raise AuditError(f"the tree of size {first} is not a prefix of the tree of size {second}")


def _largest_power_below(n: int) -> int:
    """The largest power of two smaller than `n`."""
    return 1 << (n - 1).bit_length() - 1


def _range_hash(start: int, end: int, node: NodeReader) -> bytes:
    """MTH of leaves [start, end), where `start` is a multiple of the range's top power of two."""
    width = end - start
    if width & (width - 1) == 0:
        level = width.bit_length() - 1
        return node(level, start >> level)
    split = start + _largest_power_below(width)
    return node_hash(_range_hash(start, split, node), _range_hash(split, end, node))
