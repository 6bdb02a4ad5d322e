"""The next root: officers have names, and every change can be followed or is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from appliance.errors import ConflictError, MetadataError, NotFoundError, UsageError
from appliance.trust.metadata import TrustedMetadata
from installer.rotation.officers import NextRoot, name_officers, officers_of
from installer.rotation.pending import changes

NOW = datetime(2027, 1, 15, tzinfo=UTC)
KEYS = [CryptoSigner.generate_ed25519() for _ in range(8)]


def first_root(officers: int, threshold: int, *, named: bool = True) -> Root:
    root = Root(expires=NOW + timedelta(days=9), consistent_snapshot=False)
    for key in KEYS[:officers]:
        root.add_key(key.public_key, "root")
    root.roles["root"].threshold = threshold
    for role, key in zip(("targets", "snapshot", "timestamp"), KEYS[-3:], strict=True):
        root.add_key(key.public_key, role)
    if named:
        name_officers(root, {f"officer-{n}": k.public_key.keyid for n, k in enumerate(KEYS, 1)
                             if n <= officers})  # fmt: skip
    return root


def signed(root: Root, signers: list[CryptoSigner]) -> bytes:
    metadata = Metadata(root)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def test_a_root_without_names_has_its_officers_in_order() -> None:
    named, plain = (officers_of(first_root(3, 2, named=flag)) for flag in (True, False))
    assert list(named.items()) == list(plain.items())
    assert list(plain) == ["officer-1", "officer-2", "officer-3"]


def test_names_that_do_not_match_the_keys_do_not_count() -> None:
    root = first_root(2, 1)
    name_officers(root, {"officer-1": "0" * 64, "officer-7": root.roles["root"].keyids[1]})
    assert list(officers_of(root)) == ["officer-1", "officer-2"]


def test_names_stay_with_their_keys_when_others_go() -> None:
    change = NextRoot(first_root(3, 2), NOW)
    change.remove_officer("officer-1")
    change.replace("officer-3", KEYS[3].public_key)
    assert change.add_officer(KEYS[4].public_key) == "officer-4"
    keyids = {name: key.public_key.keyid for name, key in
              (("officer-2", KEYS[1]), ("officer-3", KEYS[3]), ("officer-4", KEYS[4]))}  # fmt: skip
    assert officers_of(change.root) == keyids
    assert officers_of(Root.from_dict(change.root.to_dict())) == keyids
    assert changes(first_root(3, 2), change.root)[:3] == (
        "officer-1 leaves", "officer-4 joins", "officer-3 has a new key",
    )  # fmt: skip


def test_what_cannot_be_is_refused() -> None:
    change = NextRoot(first_root(3, 2), NOW)
    with pytest.raises(NotFoundError, match="officer-9"):
        change.replace("officer-9", KEYS[4].public_key)
    with pytest.raises(ConflictError, match="another officer's"):
        change.replace("officer-1", KEYS[1].public_key)
    change.remove_officer("officer-3")
    change.set_threshold(3)
    with pytest.raises(UsageError, match="3 of 2"):
        change.check()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_node_follows_exactly_when_enough_old_and_enough_new_officers_signed(
    data: st.DataObject,
) -> None:
    old_count = data.draw(st.integers(1, 4))
    old = first_root(old_count, data.draw(st.integers(1, old_count)))
    change = NextRoot(old, NOW)
    spare = iter(KEYS[4:])
    replaced = data.draw(st.sets(st.sampled_from(sorted(officers_of(old))), max_size=2))
    for name in sorted(replaced):
        change.replace(name, next(spare).public_key)
    change.set_threshold(data.draw(st.integers(1, old_count)))
    change.check()
    signers = data.draw(st.lists(st.sampled_from(KEYS[:6]), unique=True))
    known = set(old.roles["root"].keyids) | set(change.root.roles["root"].keyids)
    signers = [signer for signer in signers if signer.public_key.keyid in known]
    present = {signer.public_key.keyid for signer in signers}
    enough = all(
        len(present & set(root.roles["root"].keyids)) >= root.roles["root"].threshold
        for root in (old, change.root)
    )
    trusted = TrustedMetadata(signed(old, KEYS[:old_count]), NOW)
    following = signed(change.root, signers)
    if enough:
        trusted.update_root(following)
        assert trusted.root.version == old.version + 1
    else:
        with pytest.raises(MetadataError, match="valid signatures"):
            trusted.update_root(following)
