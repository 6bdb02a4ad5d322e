"""What `appliance install` refuses, it refuses before it changed or used anything."""

from __future__ import annotations

import json
import platform
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from appliance.config import Layout
from installer.staging import InstalledRelease
from tests.e2e.prefix import CLEAN, Installed, Prefix, new_prefix
from tests.fakes.media import build_media
from tests.fakes.node_media import ADAPTER, GUESSED, NodeMedia


def refused(prefix: Prefix, media: NodeMedia) -> tuple[int, dict[str, object]]:
    """Exit status and error document of an installation that must not succeed."""
    done = subprocess.run(prefix.install_command(media), capture_output=True, text=True, env=CLEAN)
    assert done.returncode != 0, done.stdout
    error: dict[str, object] = json.loads(done.stderr)["error"]
    assert error["hint"], error
    return done.returncode, error


def files(root: Path) -> set[Path]:
    return {path.relative_to(root) for path in root.rglob("*")}


@pytest.fixture
def copied(node_media: NodeMedia, tmp_path: Path) -> NodeMedia:
    """Media of this test's own, to be damaged."""
    shutil.copytree(node_media.media, tmp_path / "stick/media")
    return NodeMedia(tmp_path / "stick")


def test_preflight_names_all_blockers_and_changes_nothing(
    node_media: NodeMedia, tmp_path: Path
) -> None:
    prefix = new_prefix(tmp_path / ("long" * 30))
    before = files(tmp_path)
    with socket.create_server(("127.0.0.1", prefix.port)):
        status, error = refused(prefix, node_media)
    blockers = error["blockers"]
    assert isinstance(blockers, list)
    assert {blocker["code"] for blocker in blockers} == {"port", "socket_path"}
    assert all(blocker["remedy"] for blocker in blockers)
    assert status == 7
    assert files(tmp_path) == before


def test_altered_metadata_are_refused_before_anything_is_made(
    copied: NodeMedia, tmp_path: Path
) -> None:
    prefix = new_prefix(tmp_path / "n")
    before = files(prefix.root)
    path = copied.media / "metadata/snapshot.json"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    status, error = refused(prefix, copied)
    assert (status, error["path"]) == (5, "metadata/snapshot.json")
    assert files(prefix.root) == before


def test_an_altered_wheel_is_refused_before_it_is_used(copied: NodeMedia, tmp_path: Path) -> None:
    prefix = new_prefix(tmp_path / "n")
    (wheel,) = copied.media.glob("wheels/uvicorn-*.whl")
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)
    status, error = refused(prefix, copied)
    assert (status, error["path"]) == (5, f"wheels/{wheel.name}")
    releases = [InstalledRelease(path) for path in Layout(prefix.root).releases.iterdir()]
    assert not any(release.is_complete() for release in releases)
    assert not any(path.name.startswith("uvicorn") for path in prefix.root.rglob("*"))


def test_altered_weights_are_refused_before_they_are_kept(
    copied: NodeMedia, installed: Installed, tmp_path: Path
) -> None:
    prefix = installed.lend_programs(new_prefix(tmp_path / "n"))
    (weights, *_) = sorted(copied.media.glob("bundles/tiny-chat-1.0/graph/cpu/weights-*"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    status, error = refused(prefix, copied)
    assert (status, error["path"]) == (5, weights.relative_to(copied.media).as_posix())
    bundles = prefix.root / "var/lib/appliance/models/bundles"
    assert not any("tiny-chat" in p.read_text() for p in bundles.rglob("bundle.json"))


def test_a_missing_medium_is_named(tmp_path: Path, node_media: NodeMedia) -> None:
    prefix = new_prefix(tmp_path / "n")
    command = prefix.install_command(node_media)
    command[command.index(str(node_media.media))] = str(tmp_path / "nothing")
    done = subprocess.run(command, capture_output=True, text=True, env=CLEAN)
    assert done.returncode == 3
    assert "nothing" in json.loads(done.stderr)["error"]["message"]


def test_media_with_an_adapter_before_its_base_are_installed_and_both_answer(
    node_media: NodeMedia, installed: Installed, tmp_path: Path
) -> None:
    directory = tmp_path / "made"
    bundles = [node_media.further(ADAPTER), node_media.further(GUESSED)]
    build_media(
        directory / "media",
        bundles,
        node_media.directory / "trust",
        pythons=[".".join(platform.python_version_tuple()[:2])],
    )
    prefix = installed.lend_programs(new_prefix(tmp_path / "n"))
    result = prefix.install(NodeMedia(directory))
    assert result["models"] == {ADAPTER: "1.0", GUESSED: "1.0"}
    with prefix.serving():
        answers = {prefix.chat(result["api_key"], name, tokens=16) for name in (ADAPTER, GUESSED)}
    assert len(answers) == 2
