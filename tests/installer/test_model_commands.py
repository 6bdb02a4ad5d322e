"""What `appliance models` says to people: sizes, what to type next, what is no longer served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.audit import create_signer
from appliance.config import Config, Layout
from appliance.model_store import ModelStore
from appliance.trust.node_key import NodeKey
from installer.cli.models import outcome
from installer.node import PrefixNode
from tests.fakes.command import run_command
from tests.model_store.bundles import write_bundle


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A prefix with versions 1 and 2 of the model `a`, of which 1 is active."""
    config = Config(Layout(tmp_path / "node"))
    PrefixNode(config.layout).prepare()
    NodeKey.create(config.layout.node)
    create_signer(config.layout.audit_key, "test")
    store = ModelStore(config.layout.models)
    for version in ("1", "2"):
        weights = version.encode() * 1_500_000
        bundle = write_bundle(tmp_path / version, name="a", version=version, weights=weights)
        store.import_bundle(bundle, advance=lambda _: None)
    store.activate("a", "1")
    return config


def said(config: Config, *words: str) -> str:
    done = run_command("models", *words, "--root", str(config.layout.root))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_has_sizes_for_people_and_bytes_for_programs(config: Config) -> None:
    first, *rows = said(config, "list").splitlines()
    assert first.split() == ["NAME", "VERSION", "KIND", "ACTIVE", "SIZE", "BUILT"]
    assert [row.split() for row in rows] == [
        ["a", "1", "embedding", "yes", "1.5", "MB", "1970-01-01"],
        ["a", "2", "embedding", "no", "1.5", "MB", "1970-01-01"],
    ]
    models = json.loads(said(config, "list", "--json"))["models"]
    assert [(m["active"], type(m["size"])) for m in models] == [(True, int), (False, int)]


def test_one_model_is_shown_in_words(config: Config) -> None:
    shown = dict(line.split(maxsplit=1) for line in said(config, "show", "a", "2").splitlines())
    assert (shown["active"], shown["size"]) == ("no", "1.5 MB")
    assert "None" not in shown.values()
    assert json.loads(said(config, "show", "a", "--json"))["withdrawn"] is None


def test_a_version_that_waits_comes_with_the_command_that_serves_it(config: Config) -> None:
    store = ModelStore(config.layout.models)
    one, two = store.get("a", "1"), store.get("a", "2")
    assert outcome(one, store.active()) == "active"
    command = "`appliance models activate a 2`"
    assert outcome(two, store.active()) == f"added; {command} serves it in place of 1"
    assert outcome(two, {}) == f"added; {command} serves it"


def test_a_rollback_names_what_is_no_longer_served(config: Config) -> None:
    store = ModelStore(config.layout.models)
    store.deactivate("a")
    store.activate("a", "2")
    assert said(config, "rollback") == "a 2: no longer served\n"
