"""A keys' database of release 0.1 is upgraded in place, wholly or not at all."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from appliance.access import DEFAULT_PROJECT, NO_LIMITS, KeyStore, database, schema
from appliance.errors import StorageError
from tests.conftest import REPOSITORY

GOLDEN = REPOSITORY / "tests/golden/0.1/access/keys.db"
"""Three keys, made by release 0.1; the last one is revoked."""
SECRETS = {
    "tkx3tthy": "sk-tkx3tthy-bzppcfti6nsh5tsyupnqmijnza4pogj3qdiaeehh",
    "up4n3zxy": "sk-up4n3zxy-4ixq4anmkjx2p3diak4oadwsjd2wu42amazb6awv",
    "d6is2fkr": "sk-d6is2fkr-wzbwlcebqzjxwln4pf6k2ic4efmtsxmfhhryv5wz",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(GOLDEN, tmp_path / "keys.db"))


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return schema.version_of(connection)


def test_keys_of_release_0_1_work_as_before_and_belong_to_the_default_project(path: Path) -> None:
    assert version(path) == 1
    with KeyStore(path) as store:
        found = {key_id: store.authenticate(whole) for key_id, whole in SECRETS.items()}
        assert found["d6is2fkr"] is None, "a revoked key stays revoked"
        assert [key.name for key in store.list()] == ["billing", "städtische Werke", "lost"]
        for key in store.list():
            assert (key.project, key.kind, key.lineage) == (DEFAULT_PROJECT, "api", key.id)
            assert (key.models, key.apis, key.limits) == (None, None, NO_LIMITS)
            assert not key.priority
            assert key.cache_namespace == key.id, "what is in the cache stays where it was"
        assert store.get("up4n3zxy").expires == 4_000_000_000
        assert store.get("d6is2fkr").revoked == 1_795_392_100
        (project,) = store.projects.list()
        assert (project.id, project.name, project.created) == (
            DEFAULT_PROJECT,
            "default",
            1_795_392_000,
        )
    assert version(path) == schema.VERSION


def test_an_upgraded_database_takes_what_is_new(path: Path) -> None:
    with KeyStore(path) as store:
        store.limit("tkx3tthy", {"requests_per_minute": 5})
    with KeyStore(path) as store:
        assert store.get("tkx3tthy").limits.requests_per_minute == 5
        assert store.get("up4n3zxy").limits == NO_LIMITS


def test_an_upgrade_that_breaks_off_leaves_the_old_database(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def breaks(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE keys ADD COLUMN half TEXT")
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "_add_projects", breaks)
        with pytest.raises(StorageError, match="I/O"):
            KeyStore(path)
    assert path.read_bytes() == before
    with KeyStore(path) as store:
        assert store.authenticate(SECRETS["tkx3tthy"]) is not None


def test_processes_that_meet_on_an_old_database_upgrade_it_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 300.0)  # seven wait, on whatever disk
    found: list[int] = []

    def work() -> None:
        with KeyStore(path) as store:
            found.append(len(store.list()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3] * 8


def test_a_process_of_release_0_1_goes_on_while_its_file_is_upgraded(path: Path) -> None:
    """An update opens the file while the old endpoint still answers."""
    old = "SELECT id, name, created, expires, revoked, digest FROM keys WHERE id = ?"
    with closing(sqlite3.connect(path)) as running:
        before = running.execute(old, ("tkx3tthy",)).fetchall()
        KeyStore(path).close()
        assert running.execute(old, ("tkx3tthy",)).fetchall() == before
