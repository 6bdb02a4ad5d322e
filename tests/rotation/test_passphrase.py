"""Another passphrase: the same keys, all of them or none, and never a moment without a file."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from typer.testing import CliRunner, Result

from appliance.errors import ConflictError, NotFoundError, SignatureError, UsageError
from installer.cli.app import app
from installer.keyring import MODEL_SIGNER, signer_in
from installer.rotation import publish
from installer.rotation.passphrase import change_passphrase
from installer.rotation.rotate import rotate
from installer.rotation.show import show
from installer.signing import BundleSigner
from tests.fakes.media import PASSPHRASE
from tests.rotation.conftest import LATER, Directory

NEW = b"another horse battery staple"


def test_every_key_of_a_directory_opens_with_the_new_passphrase_and_only_with_it(
    directory: Directory,
) -> None:
    files = directory.keyring.key_files("*")
    before = {
        path: signer_in(path, PASSPHRASE).public_key for path in files if "model" not in path.name
    }
    changed = change_passphrase([directory.path], PASSPHRASE, lambda: NEW)
    assert set(changed) == set(files)
    for path, key in before.items():
        assert signer_in(path, NEW).public_key == key
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(SignatureError):
            signer_in(path, PASSPHRASE)
    assert BundleSigner.load(directory.path, NEW)
    assert directory.keyring.key_file(MODEL_SIGNER) in changed


def test_an_officer_changes_the_file_on_a_medium_alone(directory: Directory) -> None:
    medium = directory.officer(1)
    medium.chmod(0o640)
    before = directory.contents()
    assert change_passphrase([medium], PASSPHRASE, lambda: NEW) == (medium,)
    assert medium.stat().st_mode & 0o777 == 0o640, "some file systems take no other mode"
    assert directory.contents() == before
    rotate(directory.path, ["models"], PASSPHRASE, LATER)
    done = rotate(
        directory.path, ["snapshot"], PASSPHRASE, LATER, officer_keys=[directory.officer(2)]
    )
    assert done.root is not None
    assert done.root.missing == 1
    assert signer_in(medium, NEW)


def test_one_key_that_does_not_open_leaves_all_as_they_were(directory: Directory) -> None:
    medium = directory.officer(1)
    change_passphrase([directory.keyring.key_file("models")], PASSPHRASE, lambda: NEW)
    before, on_medium = directory.contents(), medium.read_bytes()
    with pytest.raises(SignatureError, match=r"models\.pem cannot be opened") as caught:
        change_passphrase([medium, directory.path], PASSPHRASE, lambda: NEW)
    assert "name the files of the others" in caught.value.hint
    assert (directory.contents(), medium.read_bytes()) == (before, on_medium)


def test_keys_whose_passphrase_nobody_remembers_are_replaced_by_the_officers(
    directory: Directory,
) -> None:
    """As the packager's guide says; the officers have a passphrase of their own."""
    media = [directory.officer(1), directory.officer(2)]
    change_passphrase(media, PASSPHRASE, lambda: NEW)
    top = ["targets", "snapshot", "timestamp"]
    with pytest.raises(SignatureError, match="cannot be opened") as caught:
        rotate(directory.path, top, NEW, LATER, officer_keys=media)
    assert "move these files aside" in caught.value.hint
    for path in directory.keyring.key_files("*"):
        path.unlink()
    rotate(directory.path, top, NEW, LATER, officer_keys=media)
    done = rotate(directory.path, ["appliance", "models", MODEL_SIGNER], NEW, LATER).done
    assert done == ("appliance", "models", MODEL_SIGNER)
    assert directory.chain().root.version == 2
    for path in directory.keyring.key_files("*"):
        signer_in(path, NEW)


def test_a_wrong_passphrase_is_told_before_the_new_one_is_asked_for(directory: Directory) -> None:
    def ask() -> bytes:
        raise AssertionError("nobody is asked")

    with pytest.raises(SignatureError, match="cannot be opened"):
        change_passphrase([directory.path], b"another", ask)


def test_what_has_no_passphrase_to_change_is_refused(directory: Directory, tmp_path: Path) -> None:
    token = tmp_path / "officer-1.token"
    token.write_text("hsm:2?label=x\n")
    with pytest.raises(UsageError, match="a PIN and no passphrase"):
        change_passphrase([token], PASSPHRASE, lambda: NEW)
    with pytest.raises(UsageError, match="is the old one"):
        change_passphrase([directory.path], PASSPHRASE, lambda: PASSPHRASE)
    with pytest.raises(NotFoundError, match="there is no key"):
        change_passphrase([tmp_path / "nothing.pem"], PASSPHRASE, lambda: NEW)
    with pytest.raises(NotFoundError, match="not a trust directory"):
        change_passphrase([tmp_path], PASSPHRASE, lambda: NEW)


def test_new_keys_that_wait_with_a_root_are_not_left_behind(directory: Directory) -> None:
    rotate(directory.path, ["snapshot"], PASSPHRASE, LATER)
    before = directory.contents()
    with pytest.raises(ConflictError) as caught:
        change_passphrase([directory.path], PASSPHRASE, lambda: NEW)
    assert caught.value.code == "root_pending"
    assert directory.contents() == before


@pytest.mark.parametrize("moment", range(1, 36, 2))
def test_after_a_stop_at_any_moment_all_keys_open_with_one_passphrase(
    directory: Directory, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = moment

    def stop_at(real: Callable[..., object]) -> Callable[..., object]:
        def stopping(*arguments: object, **named: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.EIO, "the power went")
            return real(*arguments, **named)

        return stopping

    with monkeypatch.context() as patch:
        for name in ("write_durable", "fsync_dir"):
            patch.setattr(publish, name, stop_at(getattr(publish, name)))
        for name in ("rename", "replace"):
            patch.setattr(Path, name, stop_at(getattr(Path, name)))
        with contextlib.suppress(OSError):
            change_passphrase([directory.path], PASSPHRASE, lambda: NEW)
    show(directory.path)  # completes what was begun
    opened = {_opens(path) for path in directory.keyring.key_files("*")}
    assert len(opened) == 1
    assert opened <= {PASSPHRASE, NEW}


def _opens(path: Path) -> bytes:
    for passphrase in (PASSPHRASE, NEW):
        try:
            load_pem_private_key(path.read_bytes(), passphrase)
        except ValueError:
            continue
        return passphrase
    raise AssertionError(f"{path} opens with neither")


def secret(path: Path, text: bytes) -> str:
    path.write_bytes(text + b"\n")
    path.chmod(0o600)
    return str(path)


def test_the_command_takes_both_passphrases_from_files(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPLIANCE_PASSPHRASE_FILE", secret(tmp_path / "old", PASSPHRASE))
    new = secret(tmp_path / "new", NEW)
    done = run("passphrase", str(directory.path), "--new-passphrase-file", new)
    assert done.exit_code == 0, done.output
    assert f"{directory.path}/private/targets.pem has the new passphrase\n" in done.stdout
    assert "older copies still open with the old passphrase" in done.stdout
    assert signer_in(directory.keyring.key_file("targets"), NEW)

    short = secret(tmp_path / "short", b"hunter2")
    shared = tmp_path / "shared"
    secret(shared, NEW)
    shared.chmod(0o644)
    monkeypatch.setenv("APPLIANCE_PASSPHRASE_FILE", new)
    before = directory.contents()
    for wrong, said in ((short, "shorter than 12"), (str(shared), "open to other users")):
        done = run("passphrase", str(directory.path), "--new-passphrase-file", wrong)
        assert isinstance(done.exception, UsageError)
        assert said in done.exception.message
    done = run("passphrase", str(directory.path))
    assert isinstance(done.exception, UsageError), "the new one is not the environment's"
    assert "nobody to ask" in done.exception.message
    assert directory.contents() == before


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["trust", *words])
