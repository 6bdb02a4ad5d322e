"""`appliance keys …`: what it prints, what it records, and when a revocation counts."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from appliance.access import KeyStore
from appliance.audit import create_signer, read_events
from appliance.audit.event import Admin
from appliance.config import Layout
from appliance.errors import ConflictError, NotFoundError, UsageError
from appliance.model_store import ModelStore
from installer.cli.app import app
from tests.model_store.bundles import write_bundle


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A node with an audit log and no key."""
    return make_node(tmp_path)


def make_node(root: Path) -> Layout:
    layout = Layout(root)
    for directory in (layout.audit, layout.access):
        directory.mkdir(parents=True)
    create_signer(layout.audit_key, "test")
    return layout


def run(layout: Layout, *arguments: str, noun: str = "keys") -> str:
    result = CliRunner().invoke(app, [noun, *arguments, "--root", str(layout.root)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def run_json(layout: Layout, *arguments: str, noun: str = "keys") -> Any:
    return json.loads(run(layout, *arguments, "--json", noun=noun))


def admin_records(layout: Layout) -> list[tuple[str, str]]:
    events = [event for _, event in read_events(layout.audit)]
    return [(e.action, e.target) for e in events if isinstance(e, Admin)]


def test_create_shows_a_working_secret_once(layout: Layout) -> None:
    shown = run(layout, "create", "crm")
    secret = next(word for word in shown.split() if word.startswith("sk-"))
    with KeyStore(layout.keys_db) as store:
        info = store.authenticate(secret)
        assert info is not None
        assert info.name == "crm"
    assert secret not in run(layout, "list")
    assert secret not in json.dumps(run_json(layout, "list"))


def test_list_shows_every_key_with_its_state(layout: Layout) -> None:
    assert "no API key yet" in run(layout, "list")
    first = run_json(layout, "create", "crm", "--days", "30")
    second = run_json(layout, "create", "wiki")
    run(layout, "revoke", second["id"])
    keys = run_json(layout, "list", "--all")["keys"]
    assert [(k["id"], k["state"]) for k in keys] == [
        (first["id"], "active"),
        (second["id"], "revoked"),
    ]
    assert keys[0]["expires"] == pytest.approx(keys[0]["created"] + 30 * 86_400, abs=60)
    assert "revoked" in run(layout, "list", "--all")


def test_revoked_keys_are_counted_and_shown_when_asked_for(layout: Layout) -> None:
    gone, stays = (run_json(layout, "create", name)["id"] for name in ("proof", "crm"))
    run(layout, "revoke", gone)
    assert gone not in run(layout, "list")
    listed = run_json(layout, "list")
    assert ([key["id"] for key in listed["keys"]], listed["hidden"]) == ([stays], 1)
    said = CliRunner().invoke(app, ["keys", "list", "--root", str(layout.root)])
    assert "1 revoked key is not shown; --all shows every key" in said.stderr
    assert run_json(layout, "list", "--all")["hidden"] == 0
    run(layout, "revoke", stays)
    assert "There is no API key:" in run(layout, "list")


def test_creating_and_revoking_are_recorded(layout: Layout) -> None:
    key = run_json(layout, "create", "crm")
    run(layout, "revoke", key["id"])
    assert admin_records(layout) == [("keys.create", key["id"]), ("keys.revoke", key["id"])]


def test_no_key_is_made_that_cannot_be_recorded(layout: Layout) -> None:
    (layout.audit_key / "audit.key").unlink()
    with pytest.raises(NotFoundError):
        run(layout, "create", "crm")
    assert run_json(layout, "list") == {"keys": [], "hidden": 0}


def test_a_revocation_that_cannot_be_recorded_holds_and_says_so(layout: Layout) -> None:
    key = run_json(layout, "create", "crm")
    (layout.audit_key / "audit.key").unlink()
    with pytest.raises(NotFoundError) as caught:
        run(layout, "revoke", key["id"])
    assert "is revoked, but not recorded" in caught.value.message
    with KeyStore(layout.keys_db) as store:
        assert store.authenticate(key["secret"]) is None


def test_a_key_is_made_with_what_the_options_say(layout: Layout) -> None:
    project = run_json(layout, "create", "search", noun="projects")
    key = run_json(
        layout, "create", "crm", "--project", "search", "--owner", "Ada", "--tag", "blue",
        "--model", "guide", "--api", "chat", "--api", "embeddings", "--expires", "2099-01-31",
    )  # fmt: skip
    assert (key["project"], key["owner"], key["tags"]) == (project["id"], "Ada", ["blue"])
    assert (key["models"], key["apis"]) == (["guide"], ["chat", "embeddings"])
    assert key["expires"] == 4_073_500_800
    shown = run(layout, "show", key["id"])
    for word in ("search", "Ada", "guide", "chat, embeddings", key["prefix"], "2099-01-31"):
        assert word in shown
    assert key["secret"] not in shown
    assert run_json(layout, "show", key["id"]) == {k: v for k, v in key.items() if k != "secret"}


def test_a_key_for_a_model_that_is_not_there_is_made_with_a_note(layout: Layout) -> None:
    bundle = write_bundle(layout.root / "b", name="guide", version="1")
    ModelStore(layout.models).import_bundle(bundle, advance=lambda _: None)
    words = ["keys", "create", "crm", "--root", str(layout.root), "--model"]
    assert "note:" not in CliRunner().invoke(app, [*words, "guide"]).stderr
    noted = CliRunner().invoke(app, [*words, "giude"])
    assert "note: no model on this node is called 'giude' yet; there are guide" in noted.stderr
    assert "sk-" in noted.stdout


def test_wrong_options_are_typed_errors_and_make_no_key(layout: Layout) -> None:
    for wrong in (
        ["--project", "nobody"],
        ["--api", "chatt"],
        ["--admin", "--model", "guide"],
        ["--admin", "--priority"],
        ["--expires", "soon"],
        ["--expires", "2001-01-01"],
        ["--expires", "1d", "--days", "1"],
    ):
        with pytest.raises((UsageError, NotFoundError)):
            run(layout, "create", "crm", *wrong)
    assert run_json(layout, "list") == {"keys": [], "hidden": 0}
    assert not list(layout.audit.iterdir()), "nothing was recorded"


def test_a_rotation_shows_a_new_secret_and_keeps_the_old_one_for_a_while(layout: Layout) -> None:
    old = run_json(layout, "create", "crm", "--owner", "Ada", "--model", "guide", "--priority")
    new = run_json(layout, "rotate", old["id"], "--overlap", "2h")
    assert (new["owner"], new["models"], new["lineage"]) == ("Ada", ["guide"], old["id"])
    assert (old["priority"], new["priority"]) == (True, True)
    assert new["replaces"]["id"] == old["id"]
    assert new["replaces"]["expires"] == pytest.approx(new["created"] + 7200, abs=60)
    with KeyStore(layout.keys_db) as store:
        assert store.authenticate(old["secret"]) is not None
        assert store.authenticate(new["secret"]) is not None
    assert admin_records(layout)[-1] == ("keys.rotate", old["id"])
    with pytest.raises(ConflictError, match="rotated before"):
        run(layout, "rotate", old["id"])


def test_a_successor_lives_as_long_as_the_old_key_was_meant_to(layout: Layout) -> None:
    for options, seconds in (([], 30 * 86_400), (["--expires", "7d"], 7 * 86_400)):
        old = run_json(layout, "create", "crm", "--expires", "30d")
        new = run_json(layout, "rotate", old["id"], *options)
        assert new["expires"] == pytest.approx(new["created"] + seconds, abs=60)
    eternal = run_json(layout, "create", "crm")
    assert run_json(layout, "rotate", eternal["id"])["expires"] is None


def test_limits_are_set_shown_and_lifted(layout: Layout) -> None:
    key = run_json(layout, "create", "crm")
    wanted = ("--requests-per-minute", "60", "--money-per-day", "12.50", "--parallel", "4")
    limits = run_json(layout, "limit", key["id"], *wanted)
    assert {k: v for k, v in limits.items() if v is not None} == {
        "requests_per_minute": 60,
        "money_per_day": 12_500_000,
        "parallel_requests": 4,
    }
    assert "12.50" in run(layout, "limit", key["id"])
    lifted = run_json(layout, "limit", key["id"], "--parallel", "none")
    assert (lifted["parallel_requests"], lifted["requests_per_minute"]) == (None, 60)
    assert [action for action, _ in admin_records(layout)] == [
        "keys.create", "keys.limit", "keys.limit",
    ]  # fmt: skip
    for wrong in ("-1", "many", "1.5"):
        with pytest.raises(UsageError):
            run(layout, "limit", key["id"], "--parallel", wrong)
    with pytest.raises(UsageError):
        run(layout, "limit", key["id"], "--money-per-day", "0.1234567")


def test_projects_are_made_listed_limited_and_archived(layout: Layout) -> None:
    project = run_json(layout, "create", "search", "--share-cache", noun="projects")
    key = run_json(layout, "create", "crm", "--project", "search")
    listed = run_json(layout, "list", noun="projects")["projects"]
    assert [p["name"] for p in listed] == ["default", "search"]
    assert listed[1]["shares_cache"]
    assert "search" in run(layout, "list", noun="projects")
    limits = run_json(layout, "limit", "search", "--tokens-per-month", "1000", noun="projects")
    assert limits["tokens_per_month"] == 1000
    assert not run_json(layout, "cache", "search", "--apart", noun="projects")["shares_cache"]
    with pytest.raises(ConflictError, match="called"):
        run(layout, "create", "search", noun="projects")
    run(layout, "archive", project["id"], noun="projects")
    with KeyStore(layout.keys_db) as store:
        assert store.authenticate(key["secret"]) is None
    assert run_json(layout, "list")["keys"][0]["state"] == "archived"
    with pytest.raises(ConflictError):
        run(layout, "create", "late", "--project", "search")
    assert [action for action, _ in admin_records(layout)] == [
        "projects.create", "keys.create", "projects.limit", "projects.cache", "projects.archive",
    ]  # fmt: skip


def test_a_revocation_that_was_killed_before_its_record_is_told_by_the_next(layout: Layout) -> None:
    key = run_json(layout, "create", "crm")
    with KeyStore(layout.keys_db) as store:
        store.revoke(key["id"])
    with pytest.raises(ConflictError, match="revoked before"):
        run(layout, "revoke", key["id"])
    assert admin_records(layout)[-1] == ("keys.revoke", key["id"])
    [*_, last] = [event for _, event in read_events(layout.audit)]
    assert isinstance(last, Admin)
    assert last.outcome == "error"


def test_unknown_and_revoked_ids_are_typed_errors(layout: Layout) -> None:
    key = run_json(layout, "create", "crm")
    with pytest.raises(NotFoundError):
        run(layout, "revoke", "zzzzzzzz")
    run(layout, "revoke", key["id"])
    with pytest.raises(ConflictError):
        run(layout, "revoke", key["id"])


def test_a_name_or_a_whole_key_in_place_of_an_id_is_answered_with_the_id(layout: Layout) -> None:
    key, other = run_json(layout, "create", "crm"), run_json(layout, "create", "crm")
    with pytest.raises(NotFoundError) as named:
        run(layout, "revoke", "crm")
    assert named.value.hint == f"of that name there is {key['id']}, {other['id']}"
    with pytest.raises(NotFoundError) as whole:
        run(layout, "revoke", key["secret"])
    assert key["id"] in whole.value.hint
    assert key["secret"] not in whole.value.message + whole.value.hint


def test_a_node_that_is_not_installed_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no keys"):
        run(Layout(tmp_path), "list")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_that_root_creates_belong_to_the_daemon() -> None:
    owner = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as directory:
        layout = make_node(Path(directory))
        for path in (layout.root, *layout.root.rglob("*")):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        script = "import sys; from installer.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", script, "keys", "create", "x", "--root", directory]
        subprocess.run(command, check=True, capture_output=True)
        made = [*layout.access.iterdir(), *layout.audit.rglob("*")]
        assert layout.keys_db in made
        assert {path.stat().st_uid for path in made} == {owner.pw_uid}


def test_a_tag_of_the_nodes_own_keys_cannot_be_given(layout: Layout) -> None:
    with pytest.raises(UsageError, match="the node's own"):
        run(layout, "create", "mine", "--tag", "appliance:node")
