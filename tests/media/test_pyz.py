"""appliance.pyz runs on a bare CPython and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from appliance.errors import LayoutError, NotFoundError
from installer import pyz, unpack
from installer.keyring import Keyring
from installer.media.lockfile import PYTHONS
from tests.media.conftest import Site


def interpreter(version: str) -> str:
    """One of this version, if this machine has it; the running one, which is bare by `-I -S`."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    path = shutil.which(f"python{version}")
    if (
        path is None
        or subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode
    ):
        pytest.skip(f"there is no CPython {version} here")
    return path


@pytest.mark.parametrize("version", PYTHONS)
def test_it_runs_without_any_installed_package(site: Site, tmp_path: Path, version: str) -> None:
    python = interpreter(version)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [python, "-I", "-S", str(site.media / pyz.NAME), "install", "--help"],
        env={"PATH": os.defpath, "TMPDIR": str(scratch), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "MEDIA" in done.stdout
    assert list(scratch.iterdir()) == []


def test_the_verifier_inside_works_and_knows_its_root(site: Site, tmp_path: Path) -> None:
    """Open the media with the code and the root that appliance.pyz carries, and nothing else."""
    unpack.unpack(site.media / pyz.NAME, tmp_path / "code")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path / "code")!r})
from datetime import UTC, datetime
from pathlib import Path
from appliance.trust.store import TrustStore
from installer.media import open_media, verify_media
from installer.pyz import embedded_root
media = open_media(Path({str(site.media)!r}), TrustStore(Path({str(tmp_path / "trust")!r})),
                   embedded_root(), datetime.now(UTC))
verify_media(media)
heavy = {{"numpy", "onnxruntime", "grpc", "sqlite_utils", "packaging"}} & set(sys.modules)
assert not heavy, heavy
assert all(m.__file__ is None or "site-packages" not in m.__file__
           for m in list(sys.modules.values()) if getattr(m, "__file__", None))
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


def test_the_embedded_root_is_the_newest_of_the_ceremony(site: Site) -> None:
    assert pyz.root_of(site.media / pyz.NAME) == Keyring(site.keys).roots()[-1].read_bytes()


def test_a_checkout_has_no_root_of_its_own() -> None:
    with pytest.raises(NotFoundError):
        pyz.embedded_root()


@pytest.mark.parametrize("damage", ["absent", "empty", "no root"])
def test_a_damaged_installer_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / pyz.NAME
    if damage == "empty":
        path.touch()
    elif damage == "no root":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("__main__.py", "")
    with pytest.raises(LayoutError) as caught:
        pyz.root_of(path)
    assert caught.value.path == pyz.NAME


def test_a_damaged_installer_ends_in_a_line_for_people(site: Site, tmp_path: Path) -> None:
    damaged = tmp_path / pyz.NAME
    data = bytearray((site.media / pyz.NAME).read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    done = subprocess.run(
        [sys.executable, str(damaged), "install", str(site.media)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {damaged} is damaged: ")
    assert done.stderr.endswith("\nhint: get fresh media from the packager\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_leaves_nothing_behind(site: Site, tmp_path: Path, number: signal.Signals) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    running = subprocess.Popen(
        [sys.executable, str(site.media / pyz.NAME), "install", str(site.media)],
        env=os.environ | {"TMPDIR": str(scratch)},
        stderr=subprocess.DEVNULL,
    )
    while running.poll() is None and not [*scratch.glob("appliance-*/*")]:
        time.sleep(0.01)
    assert running.poll() is None
    running.send_signal(number)
    assert running.wait(60) == 128 + number
    assert [*scratch.iterdir()] == []


def test_an_unsupported_interpreter_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unpack.unsupported() == ""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "x86-64" in unpack.unsupported()
    monkeypatch.setattr(unpack, "SUPPORTED", ((3, 99),))
    assert "CPython" in unpack.unsupported()
