"""The list of accepted model signers."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.errors import SignatureError
from appliance.trust.model_signer import ModelSigner, decode_signers, encode_signers
from tests.fakes.repository import make_model_signer


def pem_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def test_signers_survive_a_round_trip() -> None:
    signers = (make_model_signer("one"), make_model_signer("two"))
    assert decode_signers(encode_signers(signers)) == signers


def test_a_signature_verifies_under_its_key_alone() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    signature = private.sign(b"message", ec.ECDSA(SHA256()))
    signer = ModelSigner("one", pem_of(private))
    assert signer.verifies(signature, b"message")
    assert not signer.verifies(signature, b"other")
    assert not signer.verifies(b"", b"message")
    assert not make_model_signer("two").verifies(signature, b"message")


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()]
)
def test_other_kinds_of_keys_are_refused(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    with pytest.raises(SignatureError, match="P-256"):
        decode_signers(encode_signers([ModelSigner("one", pem_of(key))]))


def test_one_key_cannot_stand_twice() -> None:
    signer = make_model_signer("one")
    with pytest.raises(SignatureError, match="twice"):
        decode_signers(encode_signers([signer, ModelSigner("two", signer.public_key)]))


def test_a_key_has_one_spelling() -> None:
    signer = make_model_signer("one")
    loose = ModelSigner("one", signer.public_key.replace("\n", "\r\n"))
    with pytest.raises(SignatureError, match="canonical"):
        decode_signers(encode_signers([loose]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        json.dumps({"format": "appliance-signers/2", "signers": []}).encode(),
        json.dumps({"format": "appliance-signers/1", "signers": [], "more": 1}).encode(),
        encode_signers([ModelSigner("one", "no key")]),
        b" " * (1024 * 1024 + 1),
    ],
)
def test_a_bad_list_is_a_typed_refusal(data: bytes) -> None:
    with pytest.raises(SignatureError) as caught:
        decode_signers(data)
    assert caught.value.path == "signers.json"
