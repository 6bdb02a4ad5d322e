"""Going back to the former release: it serves and is written down, or nothing has changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.audit import create_signer, read_events
from appliance.audit.event import Admin
from appliance.config import Config, Layout
from appliance.errors import (
    ConflictError,
    LockedError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from appliance.fsops import exclusive_lock
from appliance.model_store import ModelStore
from appliance.trust.withdrawn import RELEASE, TARGET, Withdrawal, encode_withdrawn, listing
from installer.kept import Kept, read_kept, write_kept
from installer.models import Models
from installer.progress import NoProgress
from installer.reinstate import serve_first_possible
from installer.rollback import roll_back
from installer.staging import InstalledRelease, current_release, make_current
from tests.fakes.command import run_command
from tests.fakes.node import FakeNode
from tests.model_store.bundles import write_bundle


@dataclass
class Site:
    """A node that was updated from 1.0 to 2.0, and with it from version 1 of a model to 2."""

    config: Config
    node: FakeNode
    store: ModelStore
    old: InstalledRelease
    new: InstalledRelease
    unreadable: set[int] = field(default_factory=set)
    """Generations that the old release cannot serve."""
    interrupted: bool = False

    def take_over(self, release: InstalledRelease, generations: Sequence[int]) -> dict[str, Any]:
        """What a release's own program does, but for the proof."""
        unreadable = self.unreadable if release == self.old else set()
        possible = [number for number in generations if number not in unreadable]
        if not possible:
            raise UnsupportedError("these models are not known", hint="use others")
        by_number = {g.number: g for g in self.store.generations()}
        self.store.go_back_to(by_number[possible[0]])
        self.node.deploy(release)
        if self.interrupted:
            raise KeyboardInterrupt
        lock = self.node.layout.install_state / "lock"
        with self.node.running(NoProgress()), pytest.raises(LockedError), exclusive_lock(lock):
            pass
        return {"models": self.served(), "generation": possible[0], "proof": {}}

    def back(self, *, even_withdrawn: bool = False) -> Any:
        return roll_back(
            self.config,
            self.node,
            NoProgress(),
            even_withdrawn=even_withdrawn,
            take_over=self.take_over,
        )

    def served(self) -> dict[str, str]:
        return {name: bundle.version for name, bundle in self.store.active().items()}

    def records(self) -> list[Admin]:
        """What the audit log has of rollbacks."""
        events = [event for _, event in read_events(self.config.layout.audit)]
        return [e for e in events if isinstance(e, Admin) and e.action == "releases.rollback"]


def staged(layout: Layout, name: str) -> InstalledRelease:
    release = InstalledRelease(layout.releases / name)
    release.python.parent.mkdir(parents=True)
    release.python.touch()
    (release.directory / ".complete").touch()
    return release


@pytest.fixture
def site(tmp_path: Path) -> Site:
    layout = Layout(tmp_path / "node")
    node = FakeNode(layout)
    node.is_system = True
    node.prepare()
    create_signer(layout.audit_key, "test")
    store = ModelStore(layout.models)
    for version in ("1", "2"):
        bundle = write_bundle(tmp_path / version, name="a", version=version)
        store.import_bundle(bundle, advance=lambda _: None)
        store.activate("a", version)
    old, new = staged(layout, "1.0-a"), staged(layout, "2.0-b")
    write_kept(layout, Kept(proved="2.0-b", former="1.0-a", former_models=1))
    node.deploy(new)
    node.runs = new
    return Site(Config(layout), node, store, old, new)


def test_a_withdrawn_release_serves_again_only_by_a_recorded_choice(site: Site) -> None:
    trust = site.node.layout.trust
    trust.mkdir(parents=True, exist_ok=True)
    entry = Withdrawal(RELEASE, "1.0-a", "It leaks", "2026-11-28")
    (trust / TARGET).write_bytes(encode_withdrawn(listing([entry])))
    with pytest.raises(ConflictError, match=r"release 1\.0 was withdrawn") as caught:
        site.back()
    assert caught.value.code == "release_withdrawn"
    assert current_release(site.node.layout) == site.new == site.node.runs
    root = str(site.node.layout.root)
    assert "1.0 (a) was withdrawn by the packager: It leaks." in run_command(
        "releases", "list", "--root", root
    ).stdout  # fmt: skip
    assert site.back(even_withdrawn=True).release == "1.0"
    assert [record.reason for record in site.records()] == [f"accepted although {entry}"]


def test_the_former_release_serves_what_is_active_and_the_next_time_forward(site: Site) -> None:
    done = site.back()
    assert (done.release, done.previous, done.models) == ("1.0", "2.0", {"a": "2"})
    assert current_release(site.node.layout) == site.old == site.node.runs
    assert site.back().release == "2.0"
    assert current_release(site.node.layout) == site.new == site.node.runs


def test_models_that_it_cannot_serve_give_way_to_those_it_had_and_come_again_with_the_newer(
    site: Site,
) -> None:
    site.unreadable = {2}
    assert site.back().models == {"a": "1"}
    assert site.back().models == {"a": "2"}


def test_models_chosen_since_are_kept_on_the_way_forward(site: Site, tmp_path: Path) -> None:
    site.unreadable = {2}
    site.back()
    other = write_bundle(tmp_path / "other", name="b", version="1")
    site.store.import_bundle(other, advance=lambda _: None)
    site.store.activate("b", "1")
    assert site.back().models == {"a": "1", "b": "1"}


def test_both_releases_are_in_the_audit_log(site: Site) -> None:
    site.back()
    (record,) = site.records()
    assert (record.target, record.version, record.previous) == ("1.0-a", "1.0", "2.0-b")


def test_one_that_does_not_prove_itself_leaves_all_as_it_was_and_says_why(site: Site) -> None:
    site.unreadable = {2}
    site.node.broken.add(site.old)
    with pytest.raises(UnavailableError, match=r"1\.0 did not prove .*; release 2\.0") as caught:
        site.back()
    assert caught.value.code == "release_not_reinstated"
    assert caught.value.hint
    assert current_release(site.node.layout) == site.new == site.node.runs
    assert site.served() == {"a": "2"}
    assert read_kept(site.node.layout).going_to == ""
    assert [record.outcome for record in site.records()] == ["ok", "error"]


def test_if_neither_starts_both_reasons_are_said(site: Site) -> None:
    site.node.broken |= {site.old, site.new}
    with pytest.raises(UnavailableError, match="does not start either"):
        site.back()


def test_a_rollback_that_was_cut_off_goes_on_to_where_it_went(site: Site) -> None:
    site.unreadable, site.interrupted = {2}, True
    with pytest.raises(KeyboardInterrupt):
        site.back()
    assert current_release(site.node.layout) == site.old
    site.interrupted = False
    assert site.back().release == "1.0"
    assert site.node.runs == site.old
    assert site.back().release == "2.0"


def test_a_cut_off_rollback_that_then_fails_returns_to_the_models_from_before(site: Site) -> None:
    site.unreadable, site.interrupted = {2}, True
    with pytest.raises(KeyboardInterrupt):
        site.back()
    site.interrupted, site.unreadable = False, set()
    site.node.broken.add(site.old)
    with pytest.raises(UnavailableError):
        site.back()
    assert (site.node.runs, site.served()) == (site.new, {"a": "2"})


@pytest.mark.parametrize("spoil", ["nothing was before", "its files are gone"])
def test_with_nothing_kept_it_is_refused_before_anything_changes(site: Site, spoil: str) -> None:
    if spoil == "nothing was before":
        write_kept(site.node.layout, Kept(proved="2.0-b"))
    else:
        (site.old.directory / ".complete").unlink()
    kept = read_kept(site.node.layout)
    with pytest.raises(NotFoundError, match="no former release is kept") as caught:
        site.back()
    assert caught.value.hint
    assert read_kept(site.node.layout) == kept


def test_an_update_that_was_cut_off_has_to_be_finished_first(site: Site) -> None:
    make_current(site.node.layout, staged(site.node.layout, "3.0-c"))
    with pytest.raises(ConflictError, match="has not been finished"):
        site.back()


def test_a_prefix_that_is_being_served_has_to_be_stopped_first(site: Site) -> None:
    site.node.is_system = False
    with pytest.raises(ConflictError, match="would go on with release"):
        site.back()


def test_a_program_that_is_not_one_is_a_failure_like_any_other(site: Site) -> None:
    """The real hand: these interpreters are empty files."""
    site.old.python.write_text("#!/bin/sh\nexit 3\n")
    site.new.python.write_text("#!/bin/sh\nexit 4\n")
    for release in (site.old, site.new):
        release.python.chmod(0o755)
    with pytest.raises(UnavailableError, match=r"status 3 and no answer.*status 4"):
        roll_back(site.config, site.node, NoProgress())


def test_the_models_of_a_generation_that_is_gone_cannot_be_served(site: Site) -> None:
    models = Models(site.config, site.node, NoProgress())
    with pytest.raises(ConflictError, match="generation 9"):
        serve_first_possible(models, [9], NoProgress())


def said(site: Site, *words: str) -> str:
    done = run_command("releases", *words, "--root", str(site.node.layout.root))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_says_which_is_current_which_former_and_what_was_left_over(site: Site) -> None:
    staged(site.node.layout, "3.0-c")
    (site.node.layout.releases / "3.0-c/.complete").unlink()
    first, *rows = said(site, "list").splitlines()
    assert first.split() == ["VERSION", "ID", "STATE", "COMPLETE", "FOR"]
    assert [row.split() for row in rows] == [
        ["2.0", "b", "current", "yes", "processor"],
        ["1.0", "a", "former", "yes", "processor"],
        ["3.0", "c", "left", "over", "no", "processor"],
    ]
    listed = json.loads(said(site, "list", "--json"))["releases"]
    assert listed[1] == {
        "version": "1.0", "id": "a", "state": "former", "complete": True, "gpu": False,
        "withdrawn": None,
    }  # fmt: skip


def test_the_command_says_that_nothing_is_kept(site: Site) -> None:
    write_kept(site.node.layout, Kept(proved="2.0-b"))
    root = str(site.node.layout.root)
    done = run_command("releases", "rollback", "--root", root, "--json")
    assert done.returncode == NotFoundError.exit_status
    assert json.loads(done.stderr)["error"]["code"] == "no_former_release"


def test_one_that_can_serve_no_models_of_this_node_changes_none(site: Site) -> None:
    site.unreadable = {1, 2}
    with pytest.raises(UnavailableError, match="these models are not known") as caught:
        site.back()
    assert caught.value.hint == "use others"
    assert site.served() == {"a": "2"}
