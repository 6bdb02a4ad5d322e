"""From release to release and back, each with its own programs, on a node in a prefix."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.config import Layout
from installer.kept import Kept, write_kept
from installer.staging import InstalledRelease, current_release, make_current
from tests.e2e.prefix import CLEAN, Installed, Prefix, new_prefix
from tests.fakes.node_media import CHAT, EMBEDDING, NodeMedia

OLD = "0.0.9-0000000000aa"


@dataclass(frozen=True, slots=True)
class Updated:
    """A prefix that was updated, from a release with the same programs and another name."""

    prefix: Prefix
    key: str
    old: InstalledRelease
    new: InstalledRelease

    def rollback(self) -> Any:
        return self.prefix.run("releases", "rollback")

    def fails_to_go_back(self) -> str:
        """What the command says; all is as before."""
        done = subprocess.run(
            [self.prefix.command, "releases", "rollback", "--root", self.prefix.root, "--json"],
            capture_output=True, text=True, env=CLEAN,
        )  # fmt: skip
        assert done.returncode == 9, done.stdout + done.stderr
        error = json.loads(done.stderr)["error"]
        assert error["code"] == "release_not_reinstated"
        assert error["hint"]
        message: str = error["message"]
        assert f"release {self.new.version} and its models are back" in message
        assert current_release(Layout(self.prefix.root)) == self.new
        assert self.states() == {self.new.version: "current", "0.0.9": "former"}
        return message

    def states(self) -> dict[str, str]:
        rows = self.prefix.run("releases", "list")["releases"]
        assert all(row["complete"] for row in rows)
        return {row["version"]: row["state"] for row in rows}

    def answers(self) -> None:
        """A chat and an embedding."""
        with self.prefix.serving():
            self.prefix.chat(self.key, CHAT)
            assert any(self.prefix.embed(self.key, EMBEDDING, "hello"))

    def program(self, release: InstalledRelease, name: str) -> Path:
        """A module of this release, made its own: what it is a link to is not changed."""
        (path,) = release.directory.glob(f"venv/lib/*/site-packages/{name}")
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        return path


@pytest.fixture(scope="module")
def updated(
    node_media: NodeMedia, installed: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Updated:
    """Each test leaves it with the newer release."""
    prefix = installed.lend_programs(new_prefix(tmp_path_factory.mktemp("releases") / "n"))
    key = prefix.install(node_media)["api_key"]
    layout = Layout(prefix.root)
    new = current_release(layout)
    assert new is not None
    old = _copy(new, InstalledRelease(layout.releases / OLD))
    make_current(layout, old)
    write_kept(layout, Kept(proved=OLD))
    prefix.install(node_media)
    return Updated(prefix, key, old, new)


def _copy(release: InstalledRelease, to: InstalledRelease) -> InstalledRelease:
    """The same programs under another name; the scripts name their place."""
    shutil.copytree(release.directory, to.directory, symlinks=True)
    for script in (to.directory / "venv/bin").iterdir():
        if not script.is_symlink():
            data = script.read_text()
            script.write_text(data.replace(str(release.directory), str(to.directory)))
    return to


def test_back_and_forward_again_and_the_newer_media_update_once_more(
    updated: Updated, node_media: NodeMedia
) -> None:
    layout = Layout(updated.prefix.root)
    version = updated.new.version
    assert updated.states() == {version: "current", "0.0.9": "former"}
    done = updated.rollback()
    assert (done["release"], done["previous"]) == ("0.0.9", version)
    assert done["proof"]["tokens"] > 0
    assert done["models"] == {CHAT: "1.0", EMBEDDING: "1.0"}
    assert updated.states() == {"0.0.9": "current", version: "former"}
    assert current_release(layout) == updated.old
    updated.answers()
    assert updated.rollback()["release"] == version
    assert updated.states() == {version: "current", "0.0.9": "former"}
    updated.answers()
    updated.rollback()
    assert updated.prefix.install(node_media)["release"] == version
    assert updated.states() == {version: "current", "0.0.9": "former"}
    updated.prefix.run("audit", "verify")


def test_a_release_that_cannot_serve_this_node_gives_way_to_the_newer_one(
    updated: Updated,
) -> None:
    """It knows an older form of the keys' database; then it starts, and its proof fails."""
    schema = updated.program(updated.old, "appliance/access/schema.py")
    known = schema.read_text()
    schema.write_text(known.replace("\nVERSION = 4\n", "\nVERSION = 3\n"))
    assert "keys.db was written by a newer release" in updated.fails_to_go_back()
    schema.write_text(known)
    proof = updated.program(updated.old, "installer/proof.py")
    asked = proof.read_text()
    proof.write_text(asked.replace("\n_MAX_TOKENS = 16\n", "\n_MAX_TOKENS = -1\n"))
    assert "the endpoint did not prove itself: status 400" in updated.fails_to_go_back()
    proof.write_text(asked)
    updated.answers()


def test_a_node_that_is_served_is_not_changed_under_the_server(updated: Updated) -> None:
    with updated.prefix.serving():
        done = subprocess.run(
            [updated.prefix.command, "releases", "rollback", "--root", updated.prefix.root],
            capture_output=True, text=True, env=CLEAN,
        )  # fmt: skip
        assert done.returncode == 4
        assert "`appliance serve` runs" in done.stderr
        updated.prefix.chat(updated.key, CHAT)
