"""The key ceremony makes every key once, encrypted, and never twice in one place."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from tuf.api.metadata import Metadata, Root
from typer.testing import CliRunner

from appliance.errors import ConflictError, NotFoundError, SignatureError, UsageError
from installer import passphrase
from installer.ceremony import hold_ceremony
from installer.cli.app import app
from installer.keyring import Keyring
from installer.signing import BundleSigner
from tests.fakes.media import PASSPHRASE, write_passphrase

ROLE_KEYS = {"targets", "snapshot", "timestamp", "appliance", "models", "model-signer"}


def test_every_role_has_its_own_encrypted_key(tmp_path: Path) -> None:
    made = hold_ceremony(tmp_path / "keys", PASSPHRASE, officers=3, threshold=2)
    files = {path.stem: path for path in (tmp_path / "keys/private").iterdir()}
    assert set(files) == set(made.keys) == ROLE_KEYS | {"officer-1", "officer-2", "officer-3"}
    public = set()
    for path in files.values():
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"ENCRYPTED" in path.read_bytes()
        with pytest.raises((ValueError, TypeError)):
            load_pem_private_key(path.read_bytes(), b"wrong passphrase")
        key = load_pem_private_key(path.read_bytes(), PASSPHRASE).public_key()
        public.add(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    assert len(public) == len(files)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("officers", "threshold"), [(1, 1), (5, 3), (16, 16)])
def test_the_root_asks_for_the_threshold_and_every_officer_signed(
    tmp_path: Path, officers: int, threshold: int
) -> None:
    hold_ceremony(tmp_path / "keys", PASSPHRASE, officers=officers, threshold=threshold)
    root: Metadata[Root] = Metadata.from_file(str(tmp_path / "keys/metadata/1.root.json"))
    assert root.signed.roles["root"].threshold == threshold
    result = root.signed.get_verification_result("root", root.signed_bytes, root.signatures)
    assert len(result.signed) == officers


@pytest.mark.parametrize(("officers", "threshold"), [(2, 3), (3, 0), (0, 0), (17, 2)])
def test_a_threshold_that_cannot_work_is_refused(
    tmp_path: Path, officers: int, threshold: int
) -> None:
    with pytest.raises(UsageError):
        hold_ceremony(tmp_path / "keys", PASSPHRASE, officers=officers, threshold=threshold)
    assert not (tmp_path / "keys").exists()


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    hold_ceremony(tmp_path / "keys", PASSPHRASE)
    before = {p: p.read_bytes() for p in (tmp_path / "keys").rglob("*") if p.is_file()}
    with pytest.raises(ConflictError):
        hold_ceremony(tmp_path / "keys", PASSPHRASE)
    assert {p: p.read_bytes() for p in (tmp_path / "keys").rglob("*") if p.is_file()} == before


def test_an_interrupted_ceremony_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def power_cut(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("installer.ceremony._targets", power_cut)
        with pytest.raises(KeyboardInterrupt):
            hold_ceremony(tmp_path / "keys", PASSPHRASE)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".keys.partial").mkdir()  # a kill left this
    hold_ceremony(tmp_path / "keys", PASSPHRASE)


def test_no_private_key_is_in_the_public_part(tmp_path: Path) -> None:
    hold_ceremony(tmp_path / "keys", PASSPHRASE)
    for path in (tmp_path / "keys").rglob("*"):
        if path.is_file() and path.parent.name != "private":
            assert b"PRIVATE" not in path.read_bytes()


def test_the_model_signer_must_be_on_the_list(tmp_path: Path) -> None:
    for name in ("keys", "other"):
        hold_ceremony(tmp_path / name, PASSPHRASE)
    signer = BundleSigner.load(tmp_path / "keys", PASSPHRASE)
    assert signer.signer.hint == Keyring(tmp_path / "keys").model_signers()[0].hint
    foreign = (tmp_path / "other/private/model-signer.pem").read_bytes()
    (tmp_path / "keys/private/model-signer.pem").write_bytes(foreign)
    with pytest.raises(SignatureError, match="does not list"):
        BundleSigner.load(tmp_path / "keys", PASSPHRASE)


def test_a_directory_without_keys_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="trust directory") as caught:
        Keyring(tmp_path)
    assert "trust init" in caught.value.hint


# The command and the passphrase


def test_the_command_makes_the_keys(tmp_path: Path) -> None:
    write_passphrase(tmp_path / "pw", PASSPHRASE + b"\n")
    arguments = ["trust", "init", str(tmp_path / "keys"), "--passphrase-file", str(tmp_path / "pw")]
    done = CliRunner().invoke(app, [*arguments, "--officers", "2", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["officers"] == 2
    assert set(document["keys"]) == ROLE_KEYS | {"officer-1", "officer-2"}
    Keyring(tmp_path / "keys").signer("targets", PASSPHRASE)


def test_the_passphrase_comes_from_the_environments_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_passphrase(tmp_path / "pw", b"a long passphrase\r\n")
    monkeypatch.setenv("APPLIANCE_PASSPHRASE_FILE", str(file))
    assert passphrase.read_passphrase(None) == b"a long passphrase"
    other = write_passphrase(tmp_path / "other", b"another one, longer")
    assert passphrase.new_passphrase(other) == b"another one, longer"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666, 0o755])
def test_a_passphrase_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    file = write_passphrase(tmp_path / "my words")
    file.chmod(mode)
    for read in (passphrase.read_passphrase, passphrase.new_passphrase):
        with pytest.raises(UsageError, match=f"its mode is 0{mode:o}") as caught:
            read(file)
        assert caught.value.hint == f"chmod 600 '{file}'"
    file.chmod(0o400)
    assert passphrase.read_passphrase(file) == PASSPHRASE


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_passphrase_file_of_another_user_is_refused(tmp_path: Path) -> None:
    file = write_passphrase(tmp_path / "pw")
    os.chown(file, 12345, 0)
    with pytest.raises(UsageError, match="belongs to another user") as caught:
        passphrase.read_passphrase(file)
    assert caught.value.hint == f"make one of your own: install -m 600 {file} NEW"


def test_a_passphrase_may_come_through_a_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, PASSPHRASE + b"\n")
    os.close(writing)
    assert passphrase.read_passphrase(Path(f"/dev/fd/{reading}")) == PASSPHRASE
    os.close(reading)


def test_a_typed_passphrase_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPLIANCE_PASSPHRASE_FILE", raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    typed = iter(["five random words here now", "five random words here now"])
    monkeypatch.setattr("getpass.getpass", lambda _prompt: next(typed))
    assert passphrase.new_passphrase(None) == b"five random words here now"
    typed = iter(["five random words here now", "something else entirely"])
    with pytest.raises(UsageError, match="differ"):
        passphrase.new_passphrase(None)


@pytest.mark.parametrize("content", [b"", b"\n", b"short"])
def test_new_keys_want_a_real_passphrase(tmp_path: Path, content: bytes) -> None:
    file = write_passphrase(tmp_path / "pw", content)
    with pytest.raises(UsageError, match=r"short|empty"):
        passphrase.new_passphrase(file)


def test_without_a_terminal_nothing_waits_for_a_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APPLIANCE_PASSPHRASE_FILE", raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(UsageError, match="nobody to ask"):
        passphrase.read_passphrase(None)
    with pytest.raises(UsageError, match="cannot be read"):
        passphrase.read_passphrase(tmp_path / "absent")
