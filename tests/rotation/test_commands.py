"""`appliance trust …` as a packager types it, step by step as the guide has it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.errors import NotFoundError, UsageError
from installer.cli.app import app
from installer.keyring import MODEL_SIGNER
from tests.fakes.media import PASSPHRASE
from tests.rotation.conftest import Directory


@pytest.fixture(autouse=True)
def _passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(PASSPHRASE)
    file.chmod(0o600)
    monkeypatch.setenv("APPLIANCE_PASSPHRASE_FILE", str(file))


def said(directory: Directory, command: str, *words: str) -> str:
    done = CliRunner().invoke(app, ["trust", command, str(directory.path), *words])
    assert done.exit_code == 0, (done.output, done.exception)
    return re.sub(r"20\d\d-\d\d-\d\d", "DAY", done.stdout)


def test_a_root_is_signed_by_one_officer_after_the_other(directory: Directory) -> None:
    officer = [["--officer-key", str(directory.officer(number))] for number in (1, 2, 3)]
    assert said(directory, "rotate", "snapshot", "appliance", *officer[0]) == (
        "appliance has a new key\n"
        "root 2 waits for signatures: snapshot has a new key; the root holds until DAY\n"
        "signed by     officer-1\n"
        "still needed  1 of the present officers, 1 of the new\n"
        "may sign      officer-2, officer-3\n"
        "With an officer's medium: `appliance trust sign DIR --officer-key FILE`\n"
    )
    assert "root 2 waits for signatures" in said(directory, "show")
    assert said(directory, "sign", *officer[2]) == (
        "root 2 holds: snapshot has a new key; the root holds until DAY\n"
        "Back up the directory. Nodes follow with the next media.\n"
    )
    assert "waits" not in said(directory, "show")


def test_a_change_of_officers_can_be_dropped(directory: Directory) -> None:
    said(directory, "officers", "--add", "1", "--remove", "officer-1", "--threshold", "3")
    assert said(directory, "discard") == "root 2 is dropped; every key is as before\n"
    standing = json.loads(said(directory, "officers", "--json"))["root"]
    assert (standing["version"], standing["complete"], standing["missing"]) == (2, False, 2)
    assert json.loads(said(directory, "discard", "--json"))["version"] == 2


def test_show_lists_every_key_and_what_was_withdrawn(directory: Directory) -> None:
    said(directory, "rotate", MODEL_SIGNER, "--overlap")
    said(directory, "withdraw", "bundle", "guide-1.0", "--reason", "It is wrong.")
    shown = said(directory, "show")
    rows = [line.split() for line in shown.splitlines()]
    assert rows[0] == [
        "root",
        "version",
        "1,",
        "until",
        "DAY;",
        "2",
        "of",
        "3",
        "officers",
        "must",
        "agree",
    ]
    assert ["last", "media", "none", "yet"] in rows
    files = {row[0]: row[2] for row in rows if len(row) == 3 and row[0] not in {"KEY", "root"}}
    assert files == {
        "officer-1": "elsewhere", "officer-2": "elsewhere", "officer-3": "elsewhere",
        "targets": "targets.pem",
        "snapshot": "snapshot.pem", "timestamp": "timestamp.pem",
        "appliance": "appliance.pem", "models": "models.pem",
        "model-signer": "elsewhere", "model-signer-2": "model-signer.pem",
    }  # fmt: skip
    assert shown.endswith("\nbundle guide-1.0: withdrawn on DAY: It is wrong.\n")
    document = json.loads(said(directory, "show", "--json"))
    assert document["withdrawn"][0]["reason"] == "It is wrong"
    assert said(directory, "retire", "model-signer") == (
        "model-signer is retired; accepted: model-signer-2\n"
    )
    done = said(directory, "withdraw", "bundle", "guide-1.0", "--undo")
    assert done == "bundle guide-1.0 is free again; nodes learn it with the next media\n"
    assert "withdrawn" not in said(directory, "show")


def test_what_is_wrong_is_refused_with_what_to_do(directory: Directory, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["trust", "withdraw", str(directory.path), "bundle", "guide-1.0"])
    assert isinstance(done.exception, UsageError)
    done = runner.invoke(app, ["trust", "rotate", str(directory.path), "officer-7"])
    assert isinstance(done.exception, NotFoundError)
    done = runner.invoke(app, ["trust", "show", str(tmp_path / "nowhere")])
    assert isinstance(done.exception, NotFoundError)
    done = runner.invoke(app, ["trust", "withdraw", str(directory.path), "node", "x", "--undo"])
    assert done.exit_code == 2
