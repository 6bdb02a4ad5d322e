"""The list of what was withdrawn names exactly what it says, today and for later releases."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from appliance.errors import MetadataError
from appliance.trust.store import TrustStore
from appliance.trust.withdrawn import (
    BUNDLE,
    RELEASE,
    TARGET,
    Withdrawal,
    decode_withdrawn,
    encode_withdrawn,
    listing,
)
from tests.conftest import REPOSITORY
from tests.fakes.repository import CHANGING, Repository
from tests.trust.test_store import Node

GOLDEN = REPOSITORY / "tests/golden/0.2/trust" / TARGET
LISTED = listing(
    (
        Withdrawal(BUNDLE, "guide-1.0", "It answers wrongly", "2026-11-28"),
        Withdrawal(RELEASE, "0.2.0-0123456789ab", "It writes no log", "2026-11-28"),
        Withdrawal(RELEASE, "0.1.0", "It is not served any more", "2026-11-29"),
    )
)


def test_the_format_stays_readable_and_is_written_alike() -> None:
    assert decode_withdrawn(GOLDEN.read_bytes()) == LISTED
    assert encode_withdrawn(LISTED) == GOLDEN.read_bytes()


def test_a_bundle_is_named_by_name_and_version() -> None:
    assert LISTED.bundle("guide", "1.0") is LISTED.withdrawn[0]
    for name, version in (("guide", "1.1"), ("guide-1.0", ""), ("other", "1.0"), ("0.1", "0")):
        assert LISTED.bundle(name, version) is None


@pytest.mark.parametrize(
    ("directory", "withdrawn"),
    [
        ("0.2.0-0123456789ab", True),
        ("0.2.0-ba9876543210", False),
        ("0.1.0-0123456789ab", True),
        ("0.1.0-ba9876543210", True),
        ("0.1.1-0123456789ab", False),
    ],
)
def test_a_release_is_named_alone_or_with_all_of_its_version(
    directory: str, *, withdrawn: bool
) -> None:
    assert (LISTED.release(directory) is not None) == withdrawn


def test_what_a_later_release_adds_is_passed_over() -> None:
    document = msgspec.json.decode(GOLDEN.read_bytes())
    document["withdrawn"].append(
        {"kind": "adapter", "name": "guide-1.0", "reason": "r", "day": "2030-01-01", "new": 1}
    )
    later = decode_withdrawn(msgspec.json.encode(document | {"more": []}))
    assert later.bundle("guide", "1.0") == LISTED.withdrawn[0]


NO_LISTS = [b"", b"{}", b"[]", b"\xff", b'{"format":"appliance-withdrawn/2","withdrawn":[]}']


@pytest.mark.parametrize("data", NO_LISTS)
def test_what_is_no_such_list_is_refused(data: bytes) -> None:
    with pytest.raises(MetadataError):
        decode_withdrawn(data)


# On a node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, Repository())


def test_a_node_learns_it_with_the_media_and_keeps_it(node: Node) -> None:
    assert node.store.withdrawn() == listing()
    node.insert_new()
    assert node.store.withdrawn() == listing()
    node.repository.files[TARGET] = encode_withdrawn(LISTED)
    write_with_new_targets(node)
    node.insert()
    assert node.store.withdrawn() == LISTED == TrustStore(node.state).withdrawn()


def test_a_list_that_is_none_is_refused_and_the_former_one_stays(node: Node) -> None:
    node.repository.files[TARGET] = encode_withdrawn(LISTED)
    node.insert_new()
    node.repository.files[TARGET] = b"not a list"
    write_with_new_targets(node)
    with pytest.raises(MetadataError, match="not a list"):
        node.insert()
    assert node.store.withdrawn() == LISTED


def test_older_media_do_not_take_it_back(node: Node) -> None:
    node.insert_new()
    old = shutil.copytree(node.media, node.media.with_name("old"))
    node.repository.files[TARGET] = encode_withdrawn(LISTED)
    write_with_new_targets(node)
    node.insert()
    shutil.rmtree(node.media)
    old.rename(node.media)
    node.refuses("timestamp", "metadata_rollback")
    assert node.store.withdrawn() == LISTED


def write_with_new_targets(node: Node) -> None:
    shutil.rmtree(node.media, ignore_errors=True)
    node.repository.write(node.media, bump=("targets", *CHANGING))
