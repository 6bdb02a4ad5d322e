"""Keys on tokens: officers and roles sign with what never leaves the hardware.

The token is SoftHSM's, a complete PKCS #11 module by others that keeps its keys in files.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.errors import NotFoundError, SignatureError, UsageError
from appliance.trust.metadata import TrustedMetadata
from appliance.trust.store import TrustStore
from installer import hardware_key
from installer.ceremony import hold_ceremony
from installer.keyring import MODEL_SIGNER, Keyring
from installer.media import open_media
from installer.rotation.officers import officers_of
from installer.rotation.rotate import change_officers, rotate, sign
from installer.rotation.show import show
from tests.fakes.media import PASSPHRASE, build_media
from tests.media.test_media import ONE
from tests.rotation.conftest import LATER, Directory

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "493817"
LABELS = ("Officer 1", "Officer 2", "Snapshot")

pytestmark = pytest.mark.skipif(not MODULE.exists(), reason="softhsm2 is not installed")


def uri(label: str) -> str:
    return f"hsm:2?label={label.replace(' ', '+')}"


@pytest.fixture(scope="module", autouse=True)
def _tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Three tokens with a key each; all before the module is loaded, which looks only once."""
    place = tmp_path_factory.mktemp("tokens")
    (place / "objects").mkdir()
    (place / "softhsm.conf").write_text(f"directories.tokendir = {place}/objects\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(place / "softhsm.conf"))
        patch.setenv("PYKCS11LIB", str(MODULE))
        for label in LABELS:
            command = ["softhsm2-util", "--init-token", "--free", "--label", label]
            command += ["--so-pin", "87654321", "--pin", PIN]
            subprocess.run(command, check=True, capture_output=True)
        for label in LABELS:
            make_key(label)
        yield


def make_key(label: str) -> None:
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    token = pkcs11.lib(os.environ["PYKCS11LIB"]).get_token(token_label=label)
    curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
    with token.open(user_pin=PIN, rw=True) as session:
        parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        parameters.generate_keypair(store=True, id=b"\x02", label="signing")


@pytest.fixture(autouse=True)
def pin_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "pin"
    path.write_text(PIN)
    path.chmod(0o600)
    monkeypatch.setenv("APPLIANCE_TOKEN_PIN_FILE", str(path))
    hardware_key._pin_of.cache_clear()
    yield path
    hardware_key._pin_of.cache_clear()


def test_officers_move_to_tokens_and_sign_with_them(directory: Directory) -> None:
    tokens = {"officer-1": uri("Officer 1"), "officer-2": uri("Officer 2")}
    files = [directory.officer(1), directory.officer(2)]
    rotate(directory.path, list(tokens), PASSPHRASE, LATER, officer_keys=files, tokens=tokens)
    private = directory.path / "private"
    assert (private / "officer-1.token").read_text() == "hsm:2?label=Officer+1\n"
    assert not list(private.glob("officer-*.pem"))

    done = rotate(directory.path, ["snapshot"], PASSPHRASE, LATER).root
    assert done is not None
    assert done.complete
    assert done.signed == ("officer-1", "officer-2")
    assert directory.chain().root.version == 3
    schemes = {key.scheme for key in directory.chain().root.keys.values()}
    assert schemes == {"ed25519", "ecdsa-sha2-nistp256"}


def test_a_ceremony_can_begin_with_tokens(tmp_path: Path) -> None:
    tokens = {"officer-1": uri("Officer 1"), "officer-2": uri("Officer 2")}
    hold_ceremony(tmp_path / "keys", PASSPHRASE, officers=2, tokens=tokens)
    keyring = Keyring(tmp_path / "keys")
    TrustedMetadata(keyring.roots()[0].read_bytes(), datetime.now(UTC))
    assert [path.name for path in keyring.key_files("officer-*")] == [
        "officer-1.token", "officer-2.token",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no key officer-3"):
        hold_ceremony(tmp_path / "x", PASSPHRASE, officers=2, tokens={"officer-3": uri("x")})
    assert not (tmp_path / "x").exists()


def test_media_signed_by_a_token_are_believed(directory: Directory, tmp_path: Path) -> None:
    files = [directory.officer(1), directory.officer(2)]
    tokens = {"snapshot": uri("Snapshot")}
    now = datetime.now(UTC)
    rotate(directory.path, ["snapshot"], PASSPHRASE, now, officer_keys=files, tokens=tokens)
    build_media(tmp_path / "media", [], directory.path, pythons=ONE)
    anchor = directory.keyring.roots()[0].read_bytes()
    open_media(tmp_path / "media", TrustStore(tmp_path / "state"), anchor, now)
    shown = {key.name: key.file for key in show(directory.path).keys}
    assert shown["snapshot"] == "snapshot.token"


def test_a_key_goes_back_into_a_file(directory: Directory) -> None:
    files = [directory.officer(1), directory.officer(2)]
    tokens = {"timestamp": uri("Snapshot")}
    for named in (tokens, {}):
        rotate(directory.path, ["timestamp"], PASSPHRASE, LATER, officer_keys=files, tokens=named)
    assert directory.keyring.key_file("timestamp").name == "timestamp.pem"
    assert len(directory.keyring.key_files("timestamp")) == 1


def test_an_officer_whose_token_is_elsewhere_signs_later(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = {"officer-1": uri("Officer 1"), "officer-2": uri("Officer 2")}
    files = [directory.officer(1), directory.officer(2)]
    rotate(directory.path, list(tokens), PASSPHRASE, LATER, officer_keys=files, tokens=tokens)
    absent = directory.path / "private/officer-2.token"
    absent.write_text("hsm:2?label=Not+here\n")
    waiting = rotate(directory.path, ["targets"], PASSPHRASE, LATER).root
    assert waiting is not None
    assert (waiting.signed, waiting.missing) == (("officer-1",), 1)
    absent.write_text("hsm:2?label=Officer+2\n")
    done = sign(directory.path, PASSPHRASE, LATER).root
    assert done is not None
    assert done.complete
    assert list(officers_of(directory.chain().root)) == ["officer-1", "officer-2", "officer-3"]


def test_a_wrong_pin_signs_nothing(directory: Directory, pin_file: Path) -> None:
    files = [directory.officer(1), directory.officer(2)]
    tokens = {"snapshot": uri("Snapshot")}
    rotate(directory.path, ["snapshot"], PASSPHRASE, LATER, officer_keys=files, tokens=tokens)
    pin_file.write_text("000000")
    hardware_key._pin_of.cache_clear()
    rotated = directory.contents()
    for name in ("officer-1", "targets"):
        tokens = {name: uri("Officer 1")}
        # The key of `models` needs no officer: it stays, too.
        names = [name, "models"]
        with pytest.raises(SignatureError, match="PinIncorrect") as caught:
            rotate(directory.path, names, PASSPHRASE, LATER, officer_keys=files, tokens=tokens)
        assert "lock" in caught.value.hint
        assert directory.contents() == rotated


def test_without_a_pin_nothing_is_tried_and_the_file_for_it_is_named(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APPLIANCE_TOKEN_PIN_FILE")
    before, tokens = directory.contents(), {"officer-1": uri("Officer 1")}
    with pytest.raises(UsageError, match="there is no PIN of Officer 1") as caught:
        rotate(directory.path, ["officer-1"], PASSPHRASE, LATER, tokens=tokens)
    assert "APPLIANCE_TOKEN_PIN_FILE" in caught.value.hint
    assert directory.contents() == before


def test_an_officer_whose_pin_is_wrong_leaves_nothing_waiting(
    directory: Directory, pin_file: Path
) -> None:
    tokens = {"officer-1": uri("Officer 1")}
    files = [directory.officer(1), directory.officer(2)]
    rotate(directory.path, ["officer-1"], PASSPHRASE, LATER, officer_keys=files, tokens=tokens)
    before = directory.contents()
    pin_file.write_text("000000")
    hardware_key._pin_of.cache_clear()
    with pytest.raises(SignatureError, match="PinIncorrect"):
        change_officers(directory.path, PASSPHRASE, LATER, add=1)
    assert directory.contents() == before
    pin_file.write_text(PIN)
    hardware_key._pin_of.cache_clear()
    waiting = change_officers(directory.path, PASSPHRASE, LATER, add=1).root
    assert waiting is not None
    before = directory.contents()
    pin_file.write_text("000000")
    hardware_key._pin_of.cache_clear()
    with pytest.raises(SignatureError, match="PinIncorrect"):
        sign(directory.path, PASSPHRASE, LATER)
    assert directory.contents() == before, "what waited before goes on waiting"


def test_what_is_no_token_is_refused_before_anything_changes(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = directory.contents()
    files = [directory.officer(1), directory.officer(2)]

    def attempt(names: list[str], tokens: dict[str, str]) -> None:
        rotate(directory.path, names, PASSPHRASE, LATER, officer_keys=files, tokens=tokens)

    for wrong in ("pkcs11:token=x", "hsm:two", "officer"):
        with pytest.raises(UsageError, match="does not name a key"):
            attempt(["officer-1"], {"officer-1": wrong})
    with pytest.raises(NotFoundError, match="No PKCS#11 token"):
        attempt(["officer-1"], {"officer-1": uri("Nobody")})
    with pytest.raises(NotFoundError, match="could not find"):
        attempt(["officer-1"], {"officer-1": "hsm:9?label=Officer+1"})
    with pytest.raises(UsageError, match="must be a file"):
        attempt([MODEL_SIGNER], {MODEL_SIGNER: uri("Officer 1")})
    with pytest.raises(UsageError, match="is not replaced"):
        attempt(["models"], {"appliance": uri("Officer 1")})
    monkeypatch.delenv("PYKCS11LIB")
    with pytest.raises(UsageError, match="no PKCS #11 module") as caught:
        attempt(["officer-1"], {"officer-1": uri("Officer 1")})
    assert "PYKCS11LIB" in caught.value.hint
    assert directory.contents() == before
