"""The node's own key signs, and nothing else passes for it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from appliance.errors import NotFoundError, SignatureError
from appliance.trust.node_key import NodeKey, NodePublicKey

TYPE = "application/vnd.appliance.record+json"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> NodeKey:
    return NodeKey.create(tmp_path_factory.mktemp("node"))


def test_the_public_half_verifies_what_the_private_half_signed(tmp_path: Path) -> None:
    key = NodeKey.create(tmp_path / "node")
    envelope = key.sign(b"payload", TYPE)
    public = NodePublicKey.load(tmp_path / "node/node.pub")
    assert public.verify(envelope, TYPE) == b"payload"
    assert public.keyid == key.public.keyid


def test_the_private_half_is_for_root_alone(tmp_path: Path) -> None:
    NodeKey.create(tmp_path / "node")
    assert (tmp_path / "node/node.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "node/node.pub").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "node").stat().st_mode & 0o777 == 0o755


def test_creating_again_keeps_the_key(tmp_path: Path) -> None:
    first = NodeKey.create(tmp_path)
    (tmp_path / "node.pub").unlink()  # a kill between the two files
    assert NodeKey.create(tmp_path).public.keyid == first.public.keyid
    assert NodePublicKey.load(tmp_path / "node.pub").keyid == first.public.keyid


def test_no_byte_of_an_envelope_can_change(key: NodeKey) -> None:
    good = key.sign(b'{"artifact":"0f"}', TYPE)
    for position in range(len(good)):
        for mask in (0x01, 0x20, 0x80):
            bad = bytearray(good)
            bad[position] ^= mask
            with pytest.raises(SignatureError) as caught:
                key.public.verify(bytes(bad), TYPE, path="record.json")
            assert caught.value.path == "record.json"


def test_another_spelling_of_the_envelope_is_refused(key: NodeKey) -> None:
    good = key.sign(b"payload", TYPE)
    for bad in (good + b"\n", json.dumps(json.loads(good)).encode(), b"", b"\xff", b"[]"):
        with pytest.raises(SignatureError):
            key.public.verify(bad, TYPE)


def test_one_kind_of_record_does_not_pass_for_another(key: NodeKey) -> None:
    with pytest.raises(SignatureError, match="other"):
        key.public.verify(key.sign(b"payload", "application/other"), TYPE)


def test_another_nodes_signature_is_refused(key: NodeKey, tmp_path: Path) -> None:
    other = NodeKey.create(tmp_path)
    with pytest.raises(SignatureError, match="another node"):
        key.public.verify(other.sign(b"payload", TYPE), TYPE)


def test_a_stripped_or_second_signature_is_refused(key: NodeKey) -> None:
    document = json.loads(key.sign(b"payload", TYPE))
    for count in (0, 2):
        signatures = document["signatures"] * count
        bad = json.dumps(document | {"signatures": signatures}, separators=(",", ":")).encode()
        with pytest.raises(SignatureError, match="signatures instead of one"):
            key.public.verify(bad, TYPE)


def test_the_payload_type_is_signed_too(key: NodeKey) -> None:
    document = json.loads(key.sign(b"payload", "application/other"))
    document["payloadType"] = TYPE
    with pytest.raises(SignatureError, match="does not match"):
        key.public.verify(json.dumps(document, separators=(",", ":")).encode(), TYPE)


def test_loose_base64_is_refused(key: NodeKey) -> None:
    document = json.loads(key.sign(b"payload", TYPE))
    assert base64.b64decode("cGF5bG9hZB==") == base64.b64decode("cGF5bG9hZA==")
    document["payload"] = "cGF5bG9hZB=="
    with pytest.raises(SignatureError, match="base64"):
        key.public.verify(json.dumps(document, separators=(",", ":")).encode(), TYPE)


def test_a_missing_key_says_what_to_do(tmp_path: Path) -> None:
    for load in (NodeKey.load, lambda path: NodePublicKey.load(path / "node.pub")):
        with pytest.raises(NotFoundError) as caught:
            load(tmp_path)
        assert caught.value.hint


@pytest.mark.parametrize("name", ["node.key", "node.pub"])
def test_a_damaged_key_is_a_typed_error(tmp_path: Path, name: str) -> None:
    NodeKey.create(tmp_path)
    (tmp_path / name).write_bytes(b"-----BEGIN NOTHING-----")
    with pytest.raises(SignatureError):
        NodeKey.load(tmp_path) if name == "node.key" else NodePublicKey.load(tmp_path / name)
