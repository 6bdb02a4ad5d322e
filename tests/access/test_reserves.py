"""What is reserved for a key or a project: kept, bounded, recorded, and gone with its owner."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.access import ALL_MODELS, MOST_RESERVED, KeyStore, new_key, new_project, schema
from appliance.audit import read_events
from appliance.audit.event import Admin
from appliance.errors import ConflictError, NotFoundError, UsageError
from appliance.scheduler import MOST_RESERVED as MOST_OF_ENGINE
from tests.access.test_cli import make_node, run, run_json
from tests.access.test_migration import GOLDEN
from tests.access.test_projects import added


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    with KeyStore(tmp_path / "keys.db") as made:
        yield made


def test_the_engine_and_the_database_have_one_bound() -> None:
    assert MOST_RESERVED == MOST_OF_ENGINE


def test_a_keys_own_reserve_goes_before_its_projects_and_a_models_before_that_of_each(
    store: KeyStore,
) -> None:
    project = new_project("search")
    store.projects.add(project)
    key, whole = added(store, "crm", project=project.id)
    assert key.share("guide") is None
    store.projects.reserve("search", ALL_MODELS, 10)
    store.reserve(key.id, "guide", 30)
    found = store.authenticate(whole)
    assert found is not None
    assert found.share("guide") == (key.id, 30)
    assert found.share("other") == (project.id, 10)
    store.projects.reserve("search", "other", 20)
    store.reserve(key.id, "guide", None)
    assert store.get(key.id).share("guide") == (project.id, 10)
    assert store.get(key.id).share("other") == (project.id, 20)
    assert store.projects.get("search").reserves == {"": 10, "other": 20}


def test_a_rotated_key_keeps_its_reserve(store: KeyStore) -> None:
    key, _ = added(store, "crm")
    store.reserve(key.id, ALL_MODELS, 50)
    successor = new_key("crm", lineage=key.lineage)
    store.rotate(key.id, successor, overlap=0)
    assert store.get(successor.info.id).share("guide") == (key.lineage, 50)
    store.reserve(successor.info.id, ALL_MODELS, MOST_RESERVED)


def test_no_more_is_reserved_of_any_model_than_leaves_room_for_others(store: KeyStore) -> None:
    one, other = added(store, "a")[0], added(store, "b")[0]
    store.reserve(one.id, ALL_MODELS, 40)
    store.reserve(other.id, "guide", 35)
    with pytest.raises(ConflictError, match="76 percent of the model guide") as refused:
        store.reserve(other.id, "guide", 36)
    assert "none" in refused.value.hint
    with pytest.raises(ConflictError):
        store.reserve(one.id, ALL_MODELS, 41)
    store.reserve(one.id, "guide", 5)
    store.reserve(other.id, "guide", 70)
    with pytest.raises(ConflictError, match="of every model"):
        store.projects.reserve("default", ALL_MODELS, 36)


def test_what_belonged_to_who_is_gone_can_be_reserved_again(store: KeyStore) -> None:
    store.projects.add(new_project("search"))
    key, _ = added(store, "a")
    store.reserve(key.id, ALL_MODELS, 40)
    store.projects.reserve("search", ALL_MODELS, 35)
    other, _ = added(store, "b")
    with pytest.raises(ConflictError):
        store.reserve(other.id, ALL_MODELS, 75)
    store.revoke(key.id)
    store.projects.archive("search")
    assert store.reserve(other.id, ALL_MODELS, 75).share("guide") == (other.id, 75)


def test_only_who_opens_a_model_gets_a_possible_share(store: KeyStore) -> None:
    key, _ = added(store, "a")
    admin, _ = added(store, "ops", kind="admin")
    for percent in (0, -1, 76, 100):
        with pytest.raises(UsageError, match="cannot be reserved"):
            store.reserve(key.id, ALL_MODELS, percent)
    with pytest.raises(UsageError, match="admin key"):
        store.reserve(admin.id, ALL_MODELS, 10)
    with pytest.raises(UsageError, match="name of a model"):
        store.reserve(key.id, "a\tb", 10)
    with pytest.raises(NotFoundError):
        store.projects.reserve("nobody", ALL_MODELS, 10)


def test_a_database_of_the_first_release_takes_reserves(tmp_path: Path) -> None:
    path = Path(shutil.copy(GOLDEN, tmp_path / "keys.db"))
    with KeyStore(path) as store:
        assert all(key.share("guide") is None for key in store.list())
        store.reserve("tkx3tthy", "guide", 10)
        assert store.get("tkx3tthy").share("guide") == ("tkx3tthy", 10)
    assert schema.VERSION == 4


def test_the_commands_reserve_show_and_record(tmp_path: Path) -> None:
    layout = make_node(tmp_path)
    key = run_json(layout, "create", "crm")
    assert "shared" in run(layout, "list")
    assert "Nothing is reserved" in run(layout, "reserve", key["id"])
    wanted = [{"model": None, "percent": 25}]
    assert run_json(layout, "reserve", key["id"], "--share", "25%") == wanted
    run(layout, "reserve", key["id"], "--share", "30", "--model", "guide")
    assert run_json(layout, "show", key["id"])["reserves"][1] == {"model": "guide", "percent": 30}
    run(layout, "reserve", "default", "--share", "45", noun="projects")
    assert run_json(layout, "list", noun="projects")["projects"][0]["reserves"][0]["percent"] == 45
    for wrong in ("46", "much", "0"):
        with pytest.raises((UsageError, ConflictError)):
            run(layout, "reserve", "default", "--share", wrong, noun="projects")
    run(layout, "reserve", key["id"], "--share", "none")
    records = [e for _, e in read_events(layout.audit) if isinstance(e, Admin)]
    assert [(e.action, e.reason) for e in records[1:]] == [
        ("keys.reserve", "share=25 model=all"),
        ("keys.reserve", "share=30 model=guide"),
        ("projects.reserve", "share=45 model=all"),
        ("keys.reserve", "share=none model=all"),
    ]
