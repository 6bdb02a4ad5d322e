"""What the packager took back is said, written down, and not begun anew; what serves goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.audit import create_signer, read_events
from appliance.audit.event import Admin
from appliance.bundle.verify import VerifiedBundle, verify_metadata
from appliance.config import ApiSettings, Config, Layout
from appliance.errors import ApplianceError, ConflictError
from appliance.trust.node_key import NodeKey
from appliance.trust.withdrawn import (
    BUNDLE,
    RELEASE,
    TARGET,
    Withdrawal,
    encode_withdrawn,
    listing,
)
from installer.checkpoint import build_bundle
from installer.keyring import Keyring
from installer.models import Models
from installer.node import PrefixNode
from installer.progress import NoProgress
from installer.staging import InstalledRelease, make_current
from installer.status import status_of
from tests.conftest import REPOSITORY, BuildOnce
from tests.fakes.checkpoints import write_bert
from tests.fakes.command import run_command
from tests.fakes.media import make_trust


class Notes(NoProgress):
    """Keeps what an operator would read."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class Site:
    """A node that serves version 1 of a model and has version 2."""

    config: Config
    models: Models
    progress: Notes
    bundles: tuple[VerifiedBundle, ...]

    def withdraw(self, *versions: str) -> None:
        """What the next media bring."""
        entries = [Withdrawal(BUNDLE, f"m-{v}", "It is wrong", "2026-11-28") for v in versions]
        trust = self.config.layout.trust
        trust.mkdir(parents=True, exist_ok=True)
        (trust / TARGET).write_bytes(encode_withdrawn(listing(entries)))

    def served(self) -> str:
        return self.models.store.active()["m"].version

    def records(self, action: str) -> list[tuple[str, str, str]]:
        events = [event for _, event in read_events(self.config.layout.audit)]
        found = [e for e in events if isinstance(e, Admin) and e.action == action]
        return [(event.target, event.version, event.reason) for event in found]

    def run(self, *words: str) -> str:
        done = run_command(*words, "--root", str(self.config.layout.root))
        return done.stdout + done.stderr


@pytest.fixture(scope="session")
def bundles(build_once: BuildOnce) -> tuple[VerifiedBundle, ...]:
    def build(directory: Path) -> None:
        signer = make_trust(directory / "keys")
        checkpoint = write_bert(directory / "checkpoint")
        for version in ("1", "2"):
            build_bundle(
                checkpoint, directory / version, name="m", version=version, signer=signer,
                precision="fp32", license_file=REPOSITORY / "LICENSE",
            )  # fmt: skip

    directory = build_once("withdrawn-bundles", build)
    signers = Keyring(directory / "keys").model_signers()
    return tuple(verify_metadata(directory / version, signers) for version in ("1", "2"))


@pytest.fixture
def site(bundles: tuple[VerifiedBundle, ...], tmp_path: Path) -> Site:
    config = Config(Layout(tmp_path / "node"), api=ApiSettings(listen_port=1))
    node = PrefixNode(config.layout)
    node.prepare()
    NodeKey.create(config.layout.node)
    create_signer(config.layout.audit_key, "test")
    progress = Notes()
    models = Models(config, node, progress)
    models.add(bundles)
    models.activate("m", "1")
    return Site(config, models, progress, bundles)


def test_what_is_served_goes_on_and_everybody_can_see_it(site: Site) -> None:
    site.withdraw("1")
    site.models.heed_withdrawals()
    said = "m 1 was withdrawn by the packager on 2026-11-28: It is wrong"
    assert site.progress.notes == [said.replace(" was", ", which is being served, was")]
    assert site.records("models.withdrawn") == [("m", "1", "It is wrong")]
    assert site.served() == "1"
    status = status_of(site.config, PrefixNode(site.config.layout))
    assert status.models[0].withdrawn == said.removeprefix("m 1 was ")
    for command in (["status"], ["models", "list"]):
        assert said in site.run(*command)
    listed = json.loads(site.run("models", "list", "--json"))["models"]
    assert [row["withdrawn"] is None for row in listed] == [False, True]


def test_a_release_in_use_is_named_in_log_and_status_and_goes_on(site: Site) -> None:
    layout = site.config.layout
    make_current(layout, InstalledRelease(layout.releases / "0.1.0-abc"))
    (layout.trust / TARGET).write_bytes(
        encode_withdrawn(listing([Withdrawal(RELEASE, "0.1.0-abc", "It leaks", "2026-11-28")]))
    )
    site.models.heed_withdrawals()
    assert site.records("releases.withdrawn") == [("0.1.0-abc", "0.1.0", "It leaks")]
    (note,) = site.progress.notes
    assert note.startswith("the release 0.1.0-abc, which is in use, was withdrawn")
    said = site.run("status")
    assert "Release 0.1.0 was withdrawn by the packager on 2026-11-28: It leaks." in said
    assert "`appliance releases rollback`" in said


def test_nothing_is_said_where_nothing_was_withdrawn(site: Site) -> None:
    site.withdraw("3")
    site.models.heed_withdrawals()
    assert site.progress.notes == []
    assert "withdrawn" not in site.run("models", "list") + site.run("status")


def test_it_is_not_added_again(site: Site) -> None:
    site.models.remove("m", "2", even_active=False)
    site.withdraw("2")
    with pytest.raises(ConflictError, match="m 2 was withdrawn") as caught:
        site.models.add([site.bundles[1]])
    assert caught.value.code == "bundle_withdrawn"
    assert [bundle.version for bundle in site.models.store.bundles()] == ["1"]


def test_it_is_served_anew_only_by_a_recorded_choice(site: Site) -> None:
    site.withdraw("2")
    with pytest.raises(ConflictError) as caught:
        site.models.activate("m", "2")
    assert "--even-withdrawn" in caught.value.hint
    assert site.served() == "1"
    assert site.records("models.accept-withdrawn") == []
    assert site.records("models.insist-withdrawn") == []
    site.models.activate("m", "2", even_withdrawn=True)
    assert site.served() == "2"
    for action in ("models.insist-withdrawn", "models.accept-withdrawn"):
        assert site.records(action) == [("m", "2", "It is wrong")]
    events = [event for _, event in read_events(site.config.layout.audit)]
    actions = [event.action for event in events if isinstance(event, Admin)]
    assert actions[-3:] == ["models.insist-withdrawn", "models.activate", "models.accept-withdrawn"]


def test_an_activation_that_fails_is_recorded_as_wished_and_not_as_accepted(site: Site) -> None:
    site.withdraw("2")
    (site.config.layout.node / "node.key").unlink()
    shutil.rmtree(site.config.layout.artifacts)
    models = Models(site.config, PrefixNode(site.config.layout), site.progress)
    with pytest.raises(ApplianceError):
        models.activate("m", "2", even_withdrawn=True)
    assert site.served() == "1"
    assert site.records("models.insist-withdrawn") == [("m", "2", "It is wrong")]
    assert site.records("models.accept-withdrawn") == []


def test_what_is_served_is_activated_again_without_a_question(site: Site) -> None:
    site.withdraw("1")
    site.models.activate("m", "1")
    assert site.records("models.accept-withdrawn") == []


def test_a_rollback_that_cannot_be_is_not_recorded_as_one(site: Site) -> None:
    site.models.activate("m", "2")
    site.models.remove("m", "1", even_active=False)
    with pytest.raises(ConflictError, match="was removed"):
        site.models.rollback()
    assert site.records("models.rollback") == []


def test_a_rollback_does_not_lead_to_it(site: Site) -> None:
    site.models.activate("m", "2")
    site.withdraw("1")
    with pytest.raises(ConflictError, match="m 1 was withdrawn"):
        site.models.rollback()
    assert site.served() == "2"
    site.withdraw()
    site.models.rollback()
    assert site.served() == "1"
