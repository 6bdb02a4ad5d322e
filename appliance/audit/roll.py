"""From one signing key to the next: whoever steals a key cannot rewrite what lies before it.

Owns the order, under both locks: the next key is made durable; a KEYROLL, the epoch's last record,
names it; the tree up to that record is published with the old key, and kept as the epoch's end;
the old key is destroyed. Whoever finds a roll that was cut short finishes it, or undoes it if its
KEYROLL never became durable. No record is appended and nothing is published in between.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.audit.event import Keyroll, decode_leaf
from appliance.audit.journal import Journal
from appliance.audit.signer import EpochSigner, SigningKeys
from appliance.audit.tree import Tree

LeafOf = Callable[[int, Keyroll], bytes]
"""The leaf of a KEYROLL with that number."""


def roll(keys: SigningKeys, tree: Tree, journal: Journal, leaf_of: LeafOf) -> None:
    """End the epoch in force. Raises AuditError, SignatureError or OSError.

    After an error the roll is undone or finished by `settle`.
    """
    with tree.held(), journal.held():
        _finish(keys, tree, journal)
        following = keys.prepare()
        keyroll = Keyroll(next_key=following.verifier.vkey)
        journal.append_held(lambda seq: [leaf_of(seq, keyroll)])
        _finish(keys, tree, journal)


def settle(keys: SigningKeys, tree: Tree, journal: Journal) -> None:
    """Finish or undo a roll that was cut short, if there is one. Raises as `roll`."""
    with tree.held(), journal.held():
        _finish(keys, tree, journal)


def _finish(keys: SigningKeys, tree: Tree, journal: Journal) -> None:
    if not keys.rolling:
        return
    following = keys.pending()
    assert following is not None, "both locks are held"
    leaf = tree.last_leaf(journal.next_seq)
    if leaf is None or not _names(leaf, following):
        keys.discard()
        return
    tree.publish_held(journal.next_seq)
    tree.end_epoch(leaf)
    keys.promote()


def _names(leaf: bytes, following: EpochSigner) -> bool:
    record = decode_leaf(leaf)
    return isinstance(record, Keyroll) and record.next_key == following.verifier.vkey
