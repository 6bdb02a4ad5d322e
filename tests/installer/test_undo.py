"""A release that does not prove itself leaves the node as it was before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.config import Config, Layout
from appliance.errors import UnavailableError
from appliance.model_store import ModelStore
from installer.models import Models
from installer.progress import NoProgress
from installer.provision import undone_if_it_fails
from installer.staging import InstalledRelease, current_release
from tests.fakes.node import FakeNode
from tests.model_store.bundles import write_bundle


@dataclass(frozen=True, slots=True)
class Site:
    node: FakeNode
    store: ModelStore
    models: Models

    def release(self, name: str) -> InstalledRelease:
        """A release that is complete on the disk."""
        release = InstalledRelease(self.node.layout.releases / name)
        release.python.parent.mkdir(parents=True)
        release.python.touch()
        (release.directory / ".complete").touch()
        return release

    def change(self, release: InstalledRelease, model: str) -> None:
        """What an installation does: other models, another release."""
        previous = current_release(self.node.layout)
        with undone_if_it_fails(previous, self.node, self.models, NoProgress()):
            self.store.activate("a", model)
            self.node.deploy(release)
            with self.node.running(NoProgress()):
                pass


@pytest.fixture
def site(tmp_path: Path) -> Site:
    layout = Layout(tmp_path / "node")
    node = FakeNode(layout)
    node.prepare()
    store = ModelStore(layout.models)
    for version in ("1", "2"):
        bundle = write_bundle(tmp_path / version, name="a", version=version)
        store.import_bundle(bundle, advance=lambda _: None)
    return Site(node, store, Models(Config(layout), node, NoProgress()))


def test_a_failed_update_brings_back_release_and_models(site: Site) -> None:
    old, new = site.release("1.0-a"), site.release("2.0-b")
    site.change(old, "1")
    site.node.broken.add(new)
    with pytest.raises(UnavailableError):
        site.change(new, "2")
    assert current_release(site.node.layout) == old == site.node.runs
    assert site.store.active()["a"].version == "1"


def test_a_failed_first_installation_leaves_what_a_second_run_finishes(site: Site) -> None:
    release = site.release("1.0-a")
    site.node.broken.add(release)
    with pytest.raises(UnavailableError):
        site.change(release, "1")
    site.node.broken.clear()
    site.change(release, "1")
    assert site.node.runs == current_release(site.node.layout) == release


def test_the_first_failure_is_the_one_that_is_reported(site: Site) -> None:
    old, new = site.release("1.0-a"), site.release("2.0-b")
    site.change(old, "1")
    site.node.broken |= {old, new}
    with pytest.raises(UnavailableError, match=r"2\.0-b"):
        site.change(new, "2")
    assert site.store.active()["a"].version == "1"
