"""The offline TUF client: what it follows, and every attack that it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata, Root

from appliance.errors import DigestError, LayoutError, MetadataError, NotFoundError
from appliance.trust.metadata import MAX_METADATA_BYTES, ROLES
from appliance.trust.model_signer import encode_signers
from appliance.trust.store import Targets, TrustStore
from tests.conftest import FULL_VARIABLE
from tests.fakes.repository import NOW, Repository, make_model_signer


class Node:
    """A node's trust state and the media that are put into it."""

    def __init__(self, directory: Path, repository: Repository) -> None:
        self.state = directory / "state"
        self.media = directory / "media"
        self.repository = repository
        self.anchor = repository.roots[1]
        self.store = TrustStore(self.state)

    def insert(self, *, days: float = 0, allow_expired: bool = False) -> Targets:
        """Update from the media as they are, `days` after the repository's time."""
        now = NOW + timedelta(days=days)
        return self.store.update(self.media, self.anchor, now, allow_expired=allow_expired)

    def insert_new(self, **options: float) -> Targets:
        """Let the repository write new media, and insert them."""
        self.write()
        return self.insert(**options)  # type: ignore[arg-type]

    def write(self) -> None:
        shutil.rmtree(self.media, ignore_errors=True)
        self.repository.write(self.media)

    def read(self, role: str) -> bytes:
        return (self.media / f"metadata/{role}.json").read_bytes()

    def put(self, role: str, data: bytes) -> None:
        (self.media / f"metadata/{role}.json").write_bytes(data)

    def refuses(self, role: str, code: str = "metadata_invalid", **options: float) -> str:
        """Insert, expecting a refusal that names `role`; returns the message."""
        with pytest.raises(MetadataError) as caught:
            self.insert(**options)  # type: ignore[arg-type]
        assert caught.value.path == f"metadata/{role}.json"
        assert caught.value.code == code
        assert caught.value.hint
        return caught.value.message


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, Repository())


# What it follows


def test_good_media_give_targets_signers_and_a_time(node: Node) -> None:
    targets = node.insert_new()
    assert set(targets.files) == {"signers.json", "appliance/release.json", "models/tiny-1.0.json"}
    assert targets.read("models/tiny-1.0.json") == b'{"model":1}'
    assert targets.issued_at == NOW
    assert targets.stale == ()
    assert [signer.name for signer in node.store.signers()] == ["first"]
    assert node.store.latest_time() == NOW


def test_the_same_media_can_be_inserted_again(node: Node) -> None:
    assert node.insert_new() == node.insert()


def test_newer_media_are_followed(node: Node) -> None:
    first = node.insert_new()
    assert node.insert_new().version == first.version + 1


def test_the_state_replaces_the_embedded_root(node: Node) -> None:
    node.insert_new()
    node.anchor = Repository().roots[1]
    node.insert()


def test_a_node_can_say_whom_it_believes(node: Node) -> None:
    assert node.store.anchored() is None
    node.insert_new()
    node.repository.rotate("root")
    targets = node.insert_new()
    anchored = node.store.anchored()
    assert anchored is not None
    assert (anchored.root_version, anchored.media_version) == (2, targets.version)
    assert anchored.root_sha256 == hashlib.sha256(node.repository.roots[2]).hexdigest()
    assert anchored.issued_at == NOW


def test_without_state_or_anchor_nothing_is_trusted(node: Node) -> None:
    node.write()
    with pytest.raises(NotFoundError):
        node.store.update(node.media, None, NOW)


def test_a_chain_of_roots_is_walked(node: Node) -> None:
    node.insert_new()
    for role in ("root", "timestamp", "targets", "root"):
        node.repository.rotate(role)
    node.insert_new()
    assert (node.state / "5.root.json").read_bytes() == node.repository.roots[5]


def test_after_officers_changed_further_media_are_followed_too(node: Node) -> None:
    node.insert_new()
    node.repository.rotate("root")
    node.insert_new()
    node.insert_new()
    assert (node.state / "2.root.json").is_file()


def test_a_later_root_is_an_anchor_by_its_own_officers_alone(node: Node) -> None:
    node.repository.rotate("root")
    node.anchor = node.repository.roots[2]
    node.insert_new()
    signed = Metadata.from_bytes(node.anchor)
    for signer in node.repository.signers["root"][:2]:
        del signed.signatures[signer.public_key.keyid]
    with pytest.raises(MetadataError, match="1 valid signatures where 2"):
        TrustStore(node.state.with_name("other")).update(node.media, signed.to_bytes(), NOW)


def test_a_new_signer_list_retires_the_old_signer(node: Node) -> None:
    node.insert_new()
    node.repository.files["signers.json"] = encode_signers([make_model_signer("second")])
    node.repository.signed["targets"].version += 1
    node.insert_new()
    assert [signer.name for signer in node.store.signers()] == ["second"]


# Rollback, freeze, mix-and-match, fast-forward


def test_older_media_are_refused(node: Node, tmp_path: Path) -> None:
    node.write()
    shutil.copytree(node.media, tmp_path / "old")
    node.insert_new()
    node.media = tmp_path / "old"
    node.refuses("timestamp", "metadata_rollback")


@pytest.mark.parametrize("role", ["targets", "appliance", "models"])
def test_one_role_cannot_go_back_inside_a_new_snapshot(node: Node, role: str) -> None:
    node.repository.signed[role].version = 7
    node.insert_new()
    node.repository.signed[role].version = 5
    node.write()
    node.refuses(role, "metadata_rollback")


def test_the_snapshot_cannot_go_back_inside_a_new_timestamp(node: Node) -> None:
    node.repository.signed["snapshot"].version = 7
    node.insert_new()
    node.repository.signed["snapshot"].version = 5
    node.write()
    node.refuses("snapshot", "metadata_rollback")


def test_a_role_cannot_vanish_from_the_snapshot(node: Node) -> None:
    node.insert_new()
    repository = node.repository
    repository.signed["snapshot"].version += 1
    del repository.signed["snapshot"].meta["models.json"]
    _repin(node)
    assert "models" in node.refuses("snapshot")


def test_frozen_media_are_refused_when_they_expire(node: Node) -> None:
    node.insert_new()
    node.refuses("timestamp", "metadata_expired", days=101)


@pytest.mark.parametrize("role", ROLES)
def test_each_role_expires(node: Node, role: str) -> None:
    node.repository.signed[role].expires = NOW + timedelta(days=5)
    node.write()
    node.refuses(role, "metadata_expired", days=6)


def test_an_expired_root_blocks_imports_and_is_named(node: Node) -> None:
    node.repository.signed["timestamp"].expires = NOW + timedelta(days=2000)
    node.write()
    with pytest.raises(MetadataError) as caught:
        node.insert(days=1500)
    assert (caught.value.path, caught.value.code) == ("appliance.pyz", "metadata_expired")


def test_an_override_names_what_had_expired_and_does_not_move_the_clock(node: Node) -> None:
    targets = node.insert_new(days=200, allow_expired=True)
    assert set(targets.stale) == set(ROLES)
    assert node.store.latest_time() is None
    assert node.store.signers()


@pytest.mark.parametrize("role", ["snapshot", "targets", "appliance", "models"])
def test_files_of_two_media_do_not_mix(node: Node, role: str) -> None:
    node.write()
    other = node.read(role)
    node.repository.signed["targets"].version += 1
    node.write()
    assert other != node.read(role)
    node.put(role, other)
    node.refuses(role)


def test_a_fast_forwarded_timestamp_is_undone_by_rotating_its_key(node: Node) -> None:
    node.repository.signed["timestamp"].version = 1_000_000
    node.insert_new()
    node.repository.signed["timestamp"].version = 3
    node.write()
    node.refuses("timestamp", "metadata_rollback")
    node.repository.rotate("timestamp")
    assert node.insert_new().version < 1_000_000


def test_a_fast_forwarded_role_is_undone_by_rotating_the_snapshot_key(node: Node) -> None:
    node.repository.signed["models"].version = 1_000_000
    node.insert_new()
    node.repository.rotate("snapshot")
    node.repository.signed["models"].version = 3
    node.insert_new()


def test_one_version_cannot_have_two_contents(node: Node) -> None:
    node.insert_new()
    shutil.rmtree(node.media)
    node.repository.set_issued_at(NOW + timedelta(days=1))
    node.repository.write(node.media, bump=())
    node.refuses("timestamp", "metadata_equivocation")


def test_one_version_of_a_delegated_role_cannot_have_two_contents(node: Node) -> None:
    node.insert_new()
    shutil.rmtree(node.media)
    node.repository.files["models/tiny-1.0.json"] = b'{"model":2}'
    node.repository.write(node.media, bump=("snapshot", "timestamp"))
    node.refuses("models", "metadata_equivocation")


# Keys, thresholds, signatures


@pytest.mark.parametrize("role", ROLES)
def test_a_role_signed_by_another_key_is_refused(node: Node, role: str) -> None:
    node.repository.signers[role] = [CryptoSigner.generate_ed25519()]
    node.write()
    assert "0 valid signatures where 1 are needed" in node.refuses(role)


def test_media_of_other_keys_are_not_taken_for_damaged_ones(node: Node) -> None:
    """Fresh media of the same packager would be refused, too; a damaged signature's would not."""
    Repository().write(node.media)
    with pytest.raises(MetadataError) as caught:
        node.insert()
    assert "another packager's media" in caught.value.hint
    node.write()
    node.put("timestamp", re.sub(rb'("sig": ?")..', rb"\g<1>00", node.read("timestamp")))
    with pytest.raises(MetadataError) as caught:
        node.insert()
    assert caught.value.hint == "get fresh media from the packager"


def test_older_media_are_told_both_ways_of_going_back(node: Node) -> None:
    node.insert_new()
    older = {path: path.read_bytes() for path in (node.media / "metadata").iterdir()}
    node.insert_new()
    for path, data in older.items():
        path.write_bytes(data)
    with pytest.raises(MetadataError) as caught:
        node.insert()
    assert caught.value.code == "metadata_rollback"
    assert "`appliance models rollback`" in caught.value.hint
    assert "`appliance releases rollback`" in caught.value.hint


@pytest.mark.parametrize("role", ROLES)
def test_a_stripped_signature_is_refused(node: Node, role: str) -> None:
    node.repository.signers[role] = []
    node.write()
    node.refuses(role)


@pytest.mark.parametrize("stolen", ["snapshot", "timestamp", "appliance", "models"])
def test_a_stolen_key_signs_no_other_role(node: Node, stolen: str) -> None:
    node.repository.signers["targets"] = node.repository.signers[stolen]
    node.write()
    node.refuses("targets")


def test_a_stolen_models_key_cannot_add_a_signer(node: Node) -> None:
    node.repository.files["models/signers.json"] = encode_signers([make_model_signer("thief")])
    node.insert_new()
    assert [signer.name for signer in node.store.signers()] == ["first"]


def test_a_delegated_role_cannot_list_another_roles_files(node: Node) -> None:
    node.write()
    models = node.repository.signed["models"]
    models.targets["appliance/release.json"] = models.targets["models/tiny-1.0.json"]
    _repin(node)
    assert "not delegated" in node.refuses("models")


def test_a_root_below_the_old_threshold_is_refused(node: Node) -> None:
    node.insert_new()
    node.repository.root.version = 2
    node.repository.publish_root(node.repository.signers["root"][:1])
    node.write()
    assert "1 valid signatures where 2 are needed" in node.refuses("2.root")


def test_a_root_that_only_its_own_new_keys_signed_is_refused(node: Node) -> None:
    node.insert_new()
    node.repository.rotate("root")
    node.repository.publish_root(node.repository.signers["root"])
    node.write()
    assert "0 valid signatures where 2 are needed" in node.refuses("2.root")


def test_a_root_that_its_own_new_keys_did_not_sign_is_refused(node: Node) -> None:
    old = list(node.repository.signers["root"])
    node.insert_new()
    node.repository.rotate("root")
    node.repository.publish_root(old)
    node.write()
    node.refuses("2.root")


def test_a_root_cannot_skip_a_version(node: Node) -> None:
    node.repository.root.version = 3
    node.repository.publish_root(node.repository.signers["root"])
    node.write()
    node.put("2.root", node.repository.roots[3])
    node.refuses("2.root")


def test_an_endless_chain_of_roots_is_cut(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.trust.store.MAX_ROTATIONS", 2)
    for _ in range(3):
        node.repository.rotate("timestamp")
    node.write()
    assert "more than 2" in node.refuses("4.root")


def test_one_signature_given_twice_counts_once(node: Node) -> None:
    node.write()
    document = json.loads(node.read("timestamp"))
    document["signatures"] *= 2
    node.put("timestamp", _canonical(document))
    node.refuses("timestamp")


def test_one_key_under_two_ids_counts_once() -> None:
    repository = Repository(officers=1, threshold=1)
    (officer,) = repository.signers["root"]
    public = officer.public_key
    alias = SSlibKey("ab" * 32, public.keytype, public.scheme, dict(public.keyval))
    repository.root.add_key(alias, "root")
    repository.root.roles["root"].threshold = 2
    repository.publish_root([officer, CryptoSigner(officer._private_key, alias)])
    library_says = Metadata[Root].from_bytes(repository.roots[1])
    library_says.signed.verify_delegate(
        "root", library_says.signed_bytes, library_says.signatures
    )  # the library counts two: the check is ours
    with pytest.raises(MetadataError, match="two ids"):
        TrustStore(Path("unused")).update(Path("unused"), repository.roots[1], NOW)


def test_a_bad_signature_beside_enough_good_ones_is_refused(node: Node) -> None:
    document = json.loads(node.repository.roots[1])
    document["signatures"][2]["sig"] = document["signatures"][1]["sig"]
    node.anchor = _canonical(document)
    node.write()
    with pytest.raises(MetadataError, match="not valid") as caught:
        node.insert()
    assert caught.value.path == "appliance.pyz"


# Bytes

EVERY = 3 if os.environ.get(FULL_VARIABLE) else 7
"""Of the bytes; in the full run all that a change of a field could hide behind."""


@pytest.mark.parametrize("role", ROLES)
def test_no_byte_of_any_metadata_can_change(node: Node, role: str) -> None:
    node.write()
    good = node.read(role)
    for position in range(0, len(good), EVERY):
        for mask in (0x01, 0x20):
            bad = bytearray(good)
            bad[position] ^= mask
            node.put(role, bytes(bad))
            node.refuses(role)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-10],
        lambda data: data + b"\n",
        lambda data: b"[" * 100_000,
        lambda data: b'{"signatures":[],"signed":{"_type":"mirror"}}',
        lambda data: json.dumps(json.loads(data), indent=1).encode(),
        lambda data: data.replace(b'"spec_version":"1.', b'"spec_version":"2.'),
        lambda data: b" " * (MAX_METADATA_BYTES + 1),
    ],
)
def test_spoilt_metadata_are_a_typed_refusal(node: Node, role: str, spoil: object) -> None:
    node.write()
    node.put(role, spoil(node.read(role)))  # type: ignore[operator]
    with pytest.raises((MetadataError, LayoutError)) as caught:
        node.insert()
    assert caught.value.path == f"metadata/{role}.json"


@pytest.mark.parametrize("role", ROLES)
def test_missing_metadata_are_named(node: Node, role: str) -> None:
    node.write()
    (node.media / f"metadata/{role}.json").unlink()
    with pytest.raises(LayoutError) as caught:
        node.insert()
    assert caught.value.path == f"metadata/{role}.json"


def test_metadata_behind_a_link_are_refused(node: Node, tmp_path: Path) -> None:
    node.write()
    (tmp_path / "elsewhere.json").write_bytes(node.read("timestamp"))
    (node.media / "metadata/timestamp.json").unlink()
    (node.media / "metadata/timestamp.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(LayoutError):
        node.insert()


def test_an_altered_target_is_named(node: Node) -> None:
    targets = node.insert_new()
    (node.media / "targets/models/tiny-1.0.json").write_bytes(b'{"model":2}')
    with pytest.raises(DigestError) as caught:
        targets.read("models/tiny-1.0.json")
    assert caught.value.path == "targets/models/tiny-1.0.json"


def test_a_target_that_never_ends_is_refused(node: Node) -> None:
    targets = node.insert_new()
    with (node.media / "targets/models/tiny-1.0.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LayoutError):
        targets.read("models/tiny-1.0.json")


# State


@pytest.mark.parametrize("bad", ROLES)
def test_only_what_verified_is_kept_and_a_repaired_copy_goes_on(node: Node, bad: str) -> None:
    node.insert_new()
    before = {path.name: path.read_bytes() for path in node.state.iterdir()}
    node.repository.signed["targets"].version += 1
    node.write()
    good = node.read(bad)
    node.put(bad, good[:-1] + b" ")
    node.refuses(bad)
    for role in ROLES[ROLES.index(bad) :]:
        assert (node.state / f"{role}.json").read_bytes() == before[f"{role}.json"]
    node.put(bad, good)
    node.insert()


def test_damaged_state_is_never_taken_for_no_state(node: Node) -> None:
    node.insert_new()
    kept = (node.state / "timestamp.json").read_bytes()
    for damaged in (kept[:-1], kept.replace(b'"sig":"', b'"sig":"00')):
        (node.state / "timestamp.json").write_bytes(damaged)
        node.refuses("timestamp")


def test_a_damaged_clock_is_named(node: Node) -> None:
    node.insert_new()
    (node.state / "latest_time").write_bytes(b"yesterday")
    with pytest.raises(MetadataError, match="latest_time"):
        node.insert()


# Time


def test_a_clock_before_the_signing_time_does_not_help(node: Node) -> None:
    node.repository.set_issued_at(NOW + timedelta(days=200))
    node.write()
    node.refuses("timestamp", "metadata_expired", days=-3000)


def test_a_clock_set_back_does_not_revive_expired_media(node: Node) -> None:
    node.insert_new(days=90)
    node.repository.signed["timestamp"].expires = NOW + timedelta(days=80)
    node.write()
    node.refuses("timestamp", "metadata_expired", days=-3000)


def test_a_clock_years_ahead_blocks_imports_only_while_it_is_wrong(node: Node) -> None:
    node.insert_new()
    node.refuses("timestamp", "metadata_expired", days=500)
    node.insert(days=1)


@pytest.mark.parametrize("text", [None, 1700000000, "2027-01-15", "2027-13-01T00:00:00Z"])
def test_a_timestamp_says_when_it_was_signed(node: Node, text: object) -> None:
    node.repository.signed["timestamp"].unrecognized_fields["issued_at"] = text
    node.write()
    assert "issued_at" in node.refuses("timestamp")


def _repin(node: Node) -> None:
    """Sign snapshot and timestamp over what the repository's objects say now, as they are."""
    repository = node.repository
    models = repository.encode("models")
    meta = repository.signed["snapshot"].meta
    if "models.json" in meta:
        meta["models.json"].length = len(models)
        meta["models.json"].hashes = {"sha256": _sha256(models)}
    snapshot = repository.encode("snapshot")
    pinned = repository.signed["timestamp"].snapshot_meta
    pinned.version = repository.signed["snapshot"].version
    pinned.length, pinned.hashes = len(snapshot), {"sha256": _sha256(snapshot)}
    repository.signed["timestamp"].version += 1
    node.put("models", models)
    node.put("snapshot", snapshot)
    node.put("timestamp", repository.encode("timestamp"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
