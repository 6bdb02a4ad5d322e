"""`appliance media …` as a packager types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.errors import DigestError, NotFoundError
from appliance.fsops import hash_regular
from installer import pyz
from installer.cli.app import app
from tests.fakes.media import WHEELS, write_passphrase
from tests.media.conftest import Site, replace


def test_build_then_verify_as_documented(site: Site, keys: Path, tmp_path: Path) -> None:
    write_passphrase(tmp_path / "pw")
    command = ["media", "build", "--out", str(tmp_path / "out"), "--bundle", str(site.bundle)]
    command += ["--keys", str(keys), "--wheels", str(WHEELS)]
    built = CliRunner().invoke(app, [*command, "--passphrase-file", str(tmp_path / "pw"), "--json"])
    assert built.exit_code == 0, built.output
    document = json.loads(built.stdout)
    assert document["pyz_sha256"] == hash_regular(tmp_path / "out" / pyz.NAME, name="pyz")[1]
    assert Path(document["fingerprint_sheet"]).is_file()

    plain = CliRunner().invoke(app, ["media", "verify", str(tmp_path / "out")])
    assert plain.exit_code == 0, plain.output
    assert document["pyz_sha256"] in plain.stdout
    assert "tiny 1.0" in plain.stdout


def test_verify_reports_for_machines(site: Site) -> None:
    command = ["media", "verify", str(site.media), "--keys", str(site.keys), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["bundles"] == ["tiny 1.0"]
    assert document["anchor"] == str(site.keys)


def test_verify_fails_on_altered_media(media: Path) -> None:
    readme = media / "README.txt"
    replace(readme, readme.read_bytes().replace(b"stop", b"go!!"))
    done = CliRunner().invoke(app, ["media", "verify", str(media)])
    assert isinstance(done.exception, DigestError)
    assert done.exception.path == "README.txt"


def test_media_one_level_below_are_named(site: Site, tmp_path: Path) -> None:
    """The stick has them in a folder, and the operator named the stick."""
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick" / "appliance").symlink_to(site.media)
    done = CliRunner().invoke(app, ["media", "verify", str(tmp_path / "stick")])
    assert isinstance(done.exception, NotFoundError)
    assert done.exception.hint.endswith(f": {tmp_path / 'stick' / 'appliance'}")
    elsewhere = CliRunner().invoke(app, ["media", "verify", str(tmp_path / "nowhere")])
    assert isinstance(elsewhere.exception, NotFoundError)


def test_a_copy_that_did_not_finish_is_called_so(media: Path) -> None:
    shutil.rmtree(media / "metadata")
    done = CliRunner().invoke(app, ["media", "verify", str(media)])
    assert isinstance(done.exception, NotFoundError)
    assert "are incomplete" in done.exception.message
    assert "copy all of them again" in done.exception.hint


def test_a_directory_that_is_no_bundle_is_not_called_damaged(keys: Path, tmp_path: Path) -> None:
    for command in (
        ["bundle", "verify", str(tmp_path)],
        ["media", "build", "--out", str(tmp_path / "out"), "--bundle", str(tmp_path)],
    ):
        write_passphrase(tmp_path / "pw")
        if command[0] == "media":
            command += ["--wheels", str(WHEELS), "--passphrase-file", str(tmp_path / "pw")]
        done = CliRunner().invoke(app, [*command, "--keys", str(keys)])
        assert isinstance(done.exception, NotFoundError), done.exception
        assert done.exception.hint == "name the directory that holds bundle.json"


@pytest.mark.usefixtures("site")
def test_wheels_says_what_is_cached() -> None:
    done = CliRunner().invoke(app, ["media", "wheels", "--wheels", str(WHEELS), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["wheels"] > 40
