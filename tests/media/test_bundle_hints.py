"""What `bundle verify` and `media build` say of a wrong bundle, to whoever runs them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.config import Layout
from appliance.errors import ApplianceError
from installer.cli.app import app
from tests.fakes.media import WHEELS, make_trust, write_passphrase
from tests.media.conftest import Site, replace


@pytest.fixture
def bundle(site: Site, tmp_path: Path) -> Path:
    """A copy of the bundle."""
    return Path(shutil.copytree(site.bundle, tmp_path / "tiny"))


def alter(bundle: Path) -> None:
    weights = max(bundle.rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    replace(weights, bytes(data))


def refusal(*command: str) -> ApplianceError:
    """The error of a command."""
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, ApplianceError), error
    return error


def test_the_packager_builds_or_copies_again(site: Site, bundle: Path) -> None:
    command = ("bundle", "verify", str(bundle), "--keys", str(site.keys))
    (bundle / "more").touch()
    error = refusal(*command)
    assert (error.code, error.hint) == (
        "layout_invalid",
        "copy it again from where it was built, or build it again, with nothing else in its"
        " directory",
    )
    (bundle / "more").unlink()
    alter(bundle)
    error = refusal(*command)
    assert error.code == "digest_mismatch"
    assert error.hint.startswith("copy it again from where it was built, or build it again;")


def test_the_packager_signs_again_what_another_key_signed(bundle: Path, tmp_path: Path) -> None:
    make_trust(tmp_path / "other")
    keys = ("--keys", str(tmp_path / "other"))
    error = refusal("bundle", "verify", str(bundle), *keys)
    assert error.code == "signer_unknown"
    assert "`appliance bundle sign`" in error.hint
    write_passphrase(tmp_path / "pw")
    options = ("--out", str(tmp_path / "out"), "--bundle", str(bundle), "--wheels", str(WHEELS))
    passphrase = ("--passphrase-file", str(tmp_path / "pw"))
    assert refusal("media", "build", *options, *passphrase, *keys).hint == error.hint


def test_the_operator_asks_for_a_fresh_copy(site: Site, bundle: Path, tmp_path: Path) -> None:
    site.open(site.media, Layout(tmp_path / "node").trust)
    command = ("bundle", "verify", str(bundle), "--root", str(tmp_path / "node"))
    assert CliRunner().invoke(app, command).exception is None
    alter(bundle)
    assert refusal(*command).hint == "get a fresh copy of the bundle"
