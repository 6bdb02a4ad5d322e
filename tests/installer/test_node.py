"""A prefix: the same tree as a system, with the modes that keep secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import Layout
from installer.node import PrefixNode, SystemNode, directories, node_at
from installer.staging import InstalledRelease, current_release, remove_others


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "node")


def test_the_root_decides_the_kind_of_node(layout: Layout) -> None:
    assert isinstance(node_at(layout), PrefixNode)
    assert isinstance(node_at(Layout(Path("/"))), SystemNode)


def test_every_directory_has_exactly_its_mode_however_often_it_is_prepared(
    layout: Layout,
) -> None:
    node = PrefixNode(layout)
    for _ in range(2):
        node.prepare()
        for directory in directories(layout):
            assert directory.path.stat().st_mode & 0o777 == directory.mode, directory.path
        layout.audit_key.chmod(0o777)
    node.prepare()
    assert layout.audit_key.stat().st_mode & 0o777 == 0o700


def test_directories_with_secrets_are_closed_to_others(layout: Layout) -> None:
    modes = {directory.path: directory.mode for directory in directories(layout)}
    for path in (layout.audit_key, layout.access, layout.metering, layout.install_state):
        assert modes[path] & 0o077 == 0
    for path in (layout.models, layout.artifacts, layout.audit, layout.run):
        assert modes[path] & 0o007 == 0


def test_deploying_moves_the_current_link(layout: Layout) -> None:
    node = PrefixNode(layout)
    node.prepare()
    assert current_release(layout) is None
    for name in ("0.1.0-aaaa", "0.2.0-bbbb"):
        release = InstalledRelease(layout.releases / name)
        release.directory.mkdir()
        node.deploy(release)
        assert current_release(layout) == release
        assert layout.current_release.resolve() == release.directory
    assert release.version == "0.2.0"


def test_a_release_without_its_marker_is_not_complete(layout: Layout) -> None:
    release = InstalledRelease(layout.releases / "1.0-ab")
    release.python.parent.mkdir(parents=True)
    release.python.touch()
    assert not release.is_complete()
    (release.directory / ".complete").touch()
    assert release.is_complete()
    release.python.unlink()
    assert not release.is_complete(), "the system's Python went away"


def test_only_kept_releases_stay(layout: Layout) -> None:
    kept, other = (InstalledRelease(layout.releases / name) for name in ("1-a", "2-b"))
    for release in (kept, other):
        release.directory.mkdir(parents=True)
    remove_others(layout, [kept])
    assert list(layout.releases.iterdir()) == [kept.directory]


def test_a_prefix_that_does_not_serve_says_so(layout: Layout) -> None:
    node = PrefixNode(layout)
    node.prepare()
    assert not node.is_running()
    assert node.services() == {"appliance serve": "inactive"}
